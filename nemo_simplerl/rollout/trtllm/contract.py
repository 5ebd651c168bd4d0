"""Assumptions of the adapter about TensorRT-LLM, checked by reading the installed source.

Importing it needs a GPU and minutes; reading needs neither. `simplerl doctor` thus finds a release that broke an
assumption before a run, and names the file.
"""

import importlib.util
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nemo_simplerl.rollout.own_process.source_rules import (
    Fields,
    Function,
    Imports,
    LacksMethod,
    Rule,
    Says,
    broken,
    missing_imports,
)
from nemo_simplerl.rollout.trtllm.releases import DISTRIBUTION, RELEASES, Release, release_of

_LLM, _ARGS, _RLHF = "llmapi/llm.py", "llmapi/llm_args.py", "llmapi/rlhf_utils.py"
_ASYNC, _PY_EXECUTOR = "_torch/async_llm.py", "_torch/pyexecutor/py_executor.py"
_WORKER = ("executor/ray/gpu_worker.py", "executor/ray_gpu_worker.py")
_EXECUTOR = ("executor/ray/executor.py", "executor/ray_executor.py")

_ALL: tuple[Rule, ...] = (
    Says("__init__.py", ("AsyncLLM", "LLM", "SamplingParams")),
    Function(
        _LLM,
        "LLM.__init__",
        ("model", "tokenizer", "skip_tokenizer_init", "tensor_parallel_size", "dtype", "kwargs"),
    ),
    Function(_LLM, "LLM.generate_async", ("inputs", "sampling_params", "streaming")),
    Function(_LLM, "LLM._collective_rpc", ("method", "args", "kwargs", "non_block", "unique_reply_rank")),
    Function(_LLM, "LLM.shutdown"),
    Says(_LLM, ("got invalid argument", "does not support collective RPC")),
    Fields(
        _ARGS,
        "TorchLlmArgs",
        (
            "backend",
            "load_format",
            "dtype",
            "tensor_parallel_size",
            "skip_tokenizer_init",
            "max_seq_len",
            "max_input_len",
            "max_batch_size",
            "max_num_tokens",
            "kv_cache_config",
            "cuda_graph_config",
            "scheduler_config",
            "batch_wait_timeout_iters",
            "batch_wait_max_tokens_ratio",
            "allreduce_strategy",
            "orchestrator_type",
            "ray_worker_extension_cls",
            "ray_placement_config",
        ),
    ),
    Fields(
        _ARGS,
        "RayPlacementConfig",
        ("defer_workers_init", "placement_groups", "placement_bundle_indices", "per_worker_gpu_share"),
    ),
    Fields(_ARGS, "KvCacheConfig", ("enable_block_reuse", "free_gpu_memory_fraction")),
    Fields(_ARGS, "CudaGraphConfig", ("enable_padding", "batch_sizes", "max_batch_size")),
    Fields(_ARGS, "SchedulerConfig", ("capacity_scheduler_policy",)),
    Fields(_ARGS, "CapacitySchedulerPolicy", ("MAX_UTILIZATION",)),
    Fields(
        "sampling_params.py",
        "SamplingParams",
        (
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "logprobs",
            "end_id",
            "pad_id",
            "stop_token_ids",
            "include_stop_str_in_output",
            "embedding_bias",
            "detokenize",
        ),
    ),
    Fields("executor/result.py", "CompletionOutput", ("token_ids", "logprobs", "finish_reason", "stop_reason")),
    Fields("executor/result.py", "Logprob", ("logprob", "rank")),
    Function(_ASYNC, "AsyncLLM.__init__", ("placement_groups", "placement_bundle_indices", "per_worker_gpu_share")),
    Function(_ASYNC, "AsyncLLM.setup_async", is_async=True),
    Function(_ASYNC, "AsyncLLM.release", ("tags",), is_async=True),
    Function(_ASYNC, "AsyncLLM.resume", ("tags",), is_async=True),
    Function(_ASYNC, "AsyncLLM.update_weights", ("weights",), is_async=True),
    Function(_ASYNC, "AsyncLLM.collective_rpc", ("method", "args", "kwargs", "unique_reply_rank"), is_async=True),
    Says(_ASYNC, ("NCCL", "orchestrator_type", "ray")),
    Function(_RLHF, "WorkerExtension.update_weights", ("ipc_handles",), decorator="control_action_decorator"),
    Says(
        _RLHF,
        (
            "first_pre_reload_weights",
            "get_device_uuid",
            "b64decode",
            "list_args[6]",
            "allow_partial_loading=True",
            "post_load_weights",
            "reset_prefix_cache()",
        ),
    ),
    Function(_WORKER, "RayGPUWorker.sleep", ("sleep_tags",)),
    Function(_WORKER, "RayGPUWorker.wakeup", ("wakeup_tags",)),
    Function(_WORKER, "RayWorkerWrapper.call_worker_method", ("method_name",)),
    Function(_WORKER, "RayWorkerWrapper.report_device_id"),
    Function(_WORKER, "RayWorkerWrapper._inject_worker_extension", says=("already defines",)),
    Says(_WORKER, ("self.doing_shutdown", "self.global_rank", "self.device_id")),
    Imports(_WORKER, "gc"),
    Function(_EXECUTOR, "RayExecutor.collective_rpc", ("method", "args", "kwargs", "unique_reply_rank")),
    Function(_EXECUTOR, "RayExecutor.collective_rpc_async", ("method", "args", "kwargs"), is_async=True),
    Function(_EXECUTOR, "RayExecutor.init_workers_async", is_async=True),
    Function(_EXECUTOR, "RayExecutor.setup_engine_remote_async", is_async=True),
    Says(_EXECUTOR, ("TLLM_RAY_FORCE_LOCAL_CLUSTER", "ignore_reinit_error")),
    LacksMethod("executor/proxy.py", "collective_rpc"),
    LacksMethod("executor/rpc_proxy.py", "collective_rpc"),
    Function("_torch/virtual_memory.py", "release_with_tag"),
    Function("_torch/virtual_memory.py", "materialize_with_tag"),
    Function("_torch/pyexecutor/model_loader.py", "ModelLoader.reload", ("model", "weights", "allow_partial_loading")),
    Function(_PY_EXECUTOR, "PyExecutor.control_action"),
    Function(_PY_EXECUTOR, "PyExecutor.reset_prefix_cache"),
    Function(_PY_EXECUTOR, "PyExecutor.start_worker", says=("self.worker_thread",)),
    Function("_torch/models/modeling_utils.py", "DecoderModelForCausalLM.load_weights", ("allow_partial_loading",)),
    Function("_torch/utils.py", "get_device_uuid", ("device_idx",)),
    Function("serialization.py", "loads"),
)

_TAGS = (
    "SAMPLER",
    "DRAFTER",
    "GUIDED_DECODER",
    "SPEC_RESOURCES",
    "MODEL_EXTRA",
    "EXTRA_RESOURCES",
    "KV_CACHE",
    "MODEL_ENGINE_MAIN",
    "MODEL_ENGINE_DRAFT",
)


def contract(release: Release) -> tuple[Rule, ...]:
    """What the adapter takes for granted of a release of TensorRT-LLM."""
    args = (release.sleep_argument, *(("sampler_type",) if len(release.samplers) > 1 else ()))
    types = release.memory_types.removeprefix("tensorrt_llm.").replace(".", "/") + ".py"
    rules: list[Rule] = [*_ALL, Fields(_ARGS, "TorchLlmArgs", args), Says(types, ('"kv_cache"', "_no_capture"))]
    if release.sleep_argument == "sleep_config":
        rules += [
            Fields(_ARGS, "SleepConfig", ("restore_modes",)),
            Fields(types, "ExecutorMemoryType", (*_TAGS, "MODEL_WEIGHTS_MAIN", "MODEL_WEIGHTS_DRAFT")),
        ]
    else:
        rules += [
            Fields(types, "ExecutorMemoryType", _TAGS),
            Function(types, "verify_sleep_wakeup_tags"),
        ]
    if release.has_logprobs_mode:
        rules += [
            Fields("sampling_params.py", "SamplingParams", ("logprobs_mode",)),
            Fields("sampling_params.py", "LogprobMode", ("RAW", "PROCESSED")),
        ]
    return tuple(rules)


def installed_source() -> Path | None:
    """The package folder of the installed TensorRT-LLM; None where it is not installed."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file("tensorrt_llm")))


def source_release(source: Path) -> Release | None:
    """The release that the package folder says it is; None for one that the adapter does not know."""
    file = source / "version.py"
    said = re.search(r"""__version__ = ["']([^"']+)""", file.read_text()) if file.is_file() else None
    return release_of(said[1]) if said else None


def differences(source: Path) -> list[str]:
    """The rows of the contract that the package folder `source` breaks, each as `file: what is missing`."""
    release = source_release(source)
    if release is None:
        return [f"version.py: says none of the releases that the adapter knows, {', '.join(RELEASES)}"]
    return [*broken(contract(release), source), *missing_of_ray(source)]


def missing_of_ray(source: Path) -> Iterator[str]:
    """What TensorRT-LLM's files import from Ray and the installed Ray does not have; nothing where there is no Ray."""
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return
    for missing in missing_imports(source, "ray", Path(spec.origin).parent):
        yield f"{missing}: ray {_version('ray')} is installed, install ray>=2.49,<2.55"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"
