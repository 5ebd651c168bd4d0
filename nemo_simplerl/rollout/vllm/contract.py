"""Assumptions of the adapter about vLLM, checked by reading an installed source without importing it.

vLLM promises nothing below its `LLM` class, and its minor releases move things: `simplerl doctor` finds one that broke
an assumption before a run, and names the file. tests/rollout/vllm/test_vllm_contract.py holds the adapter's own code
against the rows, wherever it runs.
"""

from pathlib import Path

from nemo_simplerl.rollout.own_process.source_rules import Fields, Function, Rule, Says, broken

_LLM, _ENGINE, _OUTPUTS = "entrypoints/llm.py", "v1/engine/llm_engine.py", "outputs.py"
_LINEAR, _EMBEDDING, _LAYERS = (
    f"model_executor/layers/{name}.py" for name in ("linear", "vocab_parallel_embedding", "utils")
)
# Indented, in a function: the name is looked up when a layer's weights are packed, and extension.py has replaced it.
_PACKING = "    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm"

_MODELS = {
    f"{family.capitalize()}ForCausalLM": f"model_executor/models/{family}.py" for family in ("qwen2", "qwen3", "llama")
}

CONTRACT: tuple[Rule, ...] = (
    Says("_version.py", ("__version__ = version = '0.32.",)),
    Says("__init__.py", ("LLM", "SamplingParams", "__version__")),
    # server.py
    Function(
        _LLM,
        "LLM.__init__",
        (
            "model",
            "skip_tokenizer_init",
            "tensor_parallel_size",
            "dtype",
            "seed",
            "gpu_memory_utilization",
            "enforce_eager",
            "kv_cache_memory_bytes",
            "kwargs",
        ),
    ),
    Fields(
        "engine/arg_utils.py",
        "EngineArgs",
        (
            "load_format",
            "generation_config",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "enable_chunked_prefill",
            "logprobs_mode",
            "enable_sleep_mode",
            "worker_extension_cls",
        ),
    ),
    Says("config/model.py", ("processed_logprobs",)),
    Function(_LLM, "LLM.enqueue", ("prompts", "sampling_params", "use_tqdm")),
    Function(_LLM, "LLM.collective_rpc", ("method", "args")),
    Function(_LLM, "LLM.reset_prefix_cache"),
    Function(_LLM, "LLM.sleep", ("level",)),
    Function(_LLM, "LLM.wake_up", ("tags",)),
    Says(_LLM, ('"weights", "kv_cache"',)),
    Says("entrypoints/common/offline.py", ("request_id = str(next(self.request_counter))",)),
    Function(_ENGINE, "LLMEngine.has_unfinished_requests"),
    Function(_ENGINE, "LLMEngine.step"),
    Says(_ENGINE, ("self.engine_core = EngineCoreClient.make_client(",)),
    Function("v1/engine/core_client.py", "EngineCoreClient.shutdown"),
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
            "stop_token_ids",
            "ignore_eos",
            "detokenize",
        ),
    ),
    Function(_OUTPUTS, "RequestOutput.__init__", ("request_id", "outputs", "finished")),
    Fields(_OUTPUTS, "CompletionOutput", ("token_ids", "logprobs", "finish_reason")),
    Fields("logprobs.py", "Logprob", ("logprob",)),
    # values.py
    Says(
        "envs.py",
        (
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "VLLM_NO_USAGE_STATS",
            "VLLM_HOST_IP",
            "VLLM_LOGGING_LEVEL",
            "VLLM_CPU_OMP_THREADS_BIND",
            "VLLM_USE_V2_MODEL_RUNNER",
        ),
    ),
    # extension.py
    Says("config/__init__.py", ("set_current_vllm_config",)),
    Function("config/vllm.py", "set_current_vllm_config", ("vllm_config",)),
    Says("distributed/__init__.py", ("from .parallel_state import *",)),
    Function("distributed/parallel_state.py", "get_tp_group"),
    Fields("distributed/parallel_state.py", "GroupCoordinator", ("world_size", "device_group")),
    Function(_LAYERS, "dispatch_cpu_unquantized_gemm", ("layer", "remove_weight"), says=("layer.cpu_linear = ",)),
    Says(_LAYERS, ("return layer.cpu_linear(x, weight, bias)",)),
    Says(_LINEAR, (_PACKING,)),
    Says(_EMBEDDING, (_PACKING,)),
    Says("v1/worker/worker_base.py", ("worker_extension_cls", "self.rank = rank", "self.vllm_config = vllm_config")),
    Function("v1/worker/gpu_worker.py", "Worker.get_model"),
    Says("v1/worker/gpu_worker.py", ("self.device = ",)),
    Says("v1/worker/cpu_worker.py", ("class CPUWorker(Worker)", "self.device = ", '"VLLM_DIST_IDENT"')),
    Says("v1/worker/gpu_model_runner.py", ("self.sampler = Sampler(",)),
    # sampling.py
    Function("v1/sample/sampler.py", "Sampler.forward", ("logits", "sampling_metadata")),
    Fields("v1/sample/metadata.py", "SamplingMetadata", ("temperature", "top_p", "top_k")),
    Fields("v1/outputs.py", "SamplerOutput", ("sampled_token_ids", "logprobs_tensors")),
    Fields("v1/outputs.py", "LogprobsTensors", ("logprobs",)),
    # held.py
    *(Function(file, f"{name}.load_weights", ("weights",)) for name, file in _MODELS.items()),
    *(Fields(file, name, ("packed_modules_mapping",)) for name, file in _MODELS.items()),
    Says(_EMBEDDING, ("class VocabParallelEmbedding(", "self.org_vocab_size = ")),
    Says(
        _LINEAR,
        (
            "class ColumnParallelLinear(LinearBase)",
            "class RowParallelLinear(LinearBase)",
            "class MergedColumnParallelLinear(ColumnParallelLinear)",
            "class QKVParallelLinear(ColumnParallelLinear)",
            "self.output_partition_sizes = ",
            "self.num_kv_head_replicas = ",
        ),
    ),
)


def differences(source: Path) -> list[str]:
    """The rows that the package folder `source` breaks, each as `file: what is missing`."""
    return broken(CONTRACT, source)
