"""Assumptions of the adapter about TensorRT-LLM, checked by reading the installed source.

Importing it needs a GPU and minutes; reading needs neither. `simplerl doctor` thus finds a release that broke an
assumption before a run, and names the file.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "tensorrt-llm"


@dataclass(frozen=True)
class Function:
    """A function or method that takes these parameters; `Class.method` may be defined by a base in the same file."""

    file: str
    name: str
    params: tuple[str, ...] = ()
    decorator: str | None = None
    is_async: bool = False
    says: tuple[str, ...] = ()  # texts that its source holds


@dataclass(frozen=True)
class Fields:
    """A class with these annotated fields or enumeration members, its own or those of bases in the same file."""

    file: str
    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Says:
    """A file whose source holds these texts."""

    file: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Imports:
    """A file that must import the module if it uses it: one version of 1.2 forgot to."""

    file: str
    module: str


@dataclass(frozen=True)
class LacksMethod:
    """A file in which no class defines the method. Where one does, workers may be reached without Ray."""

    file: str
    method: str


Rule = Function | Fields | Says | Imports | LacksMethod

_LLM, _ARGS, _RLHF = "llmapi/llm.py", "llmapi/llm_args.py", "llmapi/rlhf_utils.py"
_ASYNC, _WORKER, _EXECUTOR = "_torch/async_llm.py", "executor/ray_gpu_worker.py", "executor/ray_executor.py"

CONTRACT: tuple[Rule, ...] = (
    Says("version.py", ('__version__ = "1.2.',)),
    Says("__init__.py", ("AsyncLLM", "LLM", "SamplingParams")),
    Says("llmapi/__init__.py", ("KvCacheConfig", "CudaGraphConfig")),
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
            "sampler_type",
            "enable_sleep",
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
    Function(
        _RLHF,
        "WorkerExtension.update_weights",
        ("ipc_handles",),
        decorator="control_action_decorator",
        says=(
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
    Imports(_WORKER, "gc"),
    Function(_EXECUTOR, "RayExecutor.collective_rpc", ("method", "args", "kwargs", "unique_reply_rank")),
    Function(_EXECUTOR, "RayExecutor.collective_rpc_async", ("method", "args", "kwargs"), is_async=True),
    Function(_EXECUTOR, "RayExecutor.init_workers_async", is_async=True),
    Function(_EXECUTOR, "RayExecutor.setup_engine_remote_async", is_async=True),
    Says(_EXECUTOR, ("TLLM_RAY_FORCE_LOCAL_CLUSTER", "ignore_reinit_error")),
    LacksMethod("executor/proxy.py", "collective_rpc"),
    LacksMethod("executor/rpc_proxy.py", "collective_rpc"),
    Function("_ray_utils.py", "control_action_decorator"),
    Says(
        "_torch/virtual_memory.py",
        (
            '"sampler"',
            '"drafter"',
            '"guided_decoder"',
            '"spec_resource_manager"',
            '"model_extra"',
            '"executor_extra"',
            '"kv_cache"',
            '"model"',
            '"draft_model"',
        ),
    ),
    Function("_torch/virtual_memory.py", "verify_sleep_wakeup_tags"),
    Function("_torch/virtual_memory.py", "release_with_tag"),
    Function("_torch/virtual_memory.py", "materialize_with_tag"),
    Function("_torch/pyexecutor/model_loader.py", "ModelLoader.reload", ("model", "weights", "allow_partial_loading")),
    Function("_torch/pyexecutor/py_executor.py", "PyExecutor.control_action"),
    Function("_torch/pyexecutor/py_executor.py", "PyExecutor.reset_prefix_cache"),
    Function("_torch/models/modeling_utils.py", "DecoderModelForCausalLM.load_weights", ("allow_partial_loading",)),
    Function("_torch/utils.py", "get_device_uuid", ("device_idx",)),
    Function("serialization.py", "loads"),
)


def installed_source() -> Path | None:
    """The package folder of the installed TensorRT-LLM; None where it is not installed."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file("tensorrt_llm")))


def differences(source: Path) -> list[str]:
    """The rows of the contract that the package folder `source` breaks, each as `file: what is missing`."""
    found: list[str] = []
    sources: dict[str, _Source | str] = {}
    for rule in CONTRACT:
        if rule.file not in sources:
            sources[rule.file] = _read(source, rule.file)
        read = sources[rule.file]
        if isinstance(read, str):
            if read not in found and not isinstance(rule, LacksMethod):
                found.append(read)
        else:
            found += [f"{rule.file}: {problem}" for problem in _problems(rule, read)]
    return found


@dataclass(frozen=True)
class _Source:
    """A parsed file and its classes by name."""

    text: str
    tree: ast.Module
    classes: dict[str, ast.ClassDef]

    def lineage(self, name: str) -> Iterator[ast.ClassDef]:
        """The class and those of its bases that this file defines."""
        if name in self.classes:
            yield self.classes[name]
            for base in self.classes[name].bases:
                yield from self.lineage(ast.unparse(base))

    def function(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        owner, _, function = name.rpartition(".")
        bodies = [node.body for node in self.lineage(owner)] if owner else [self.tree.body]
        for body in bodies:
            for node in body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == function:
                    return node
        return None


def _read(source: Path, file: str) -> _Source | str:
    """The parsed file, or what is wrong with it."""
    try:
        text = (source / file).read_text()
        tree = ast.parse(text)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return f"{file}: cannot be read ({error})"
    return _Source(text, tree, {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)})


def _problems(rule: Rule, source: _Source) -> Iterator[str]:
    """What the file lacks of one rule, in words."""
    if isinstance(rule, Function):
        yield from _problems_of_function(rule, source)
    elif isinstance(rule, Fields):
        lineage = list(source.lineage(rule.name))
        if not lineage:
            yield f"there is no class {rule.name}"
            return
        names = {name for node in lineage for name in _field_names(node)}
        yield from (f"{rule.name} has no field {field}" for field in rule.fields if field not in names)
    elif isinstance(rule, Says):
        yield from (f"nowhere says {text}" for text in rule.texts if not _says(source.text, text))
    elif isinstance(rule, Imports):
        used = any(isinstance(node, ast.Name) and node.id == rule.module for node in ast.walk(source.tree))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(source.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        if used and rule.module not in imported:
            yield f"uses {rule.module} without importing it: its callers get a NameError"
    elif any(rule.method in {getattr(item, "name", None) for item in node.body} for node in source.classes.values()):
        yield f"a class now has {rule.method}: workers may be reached without Ray"


def _problems_of_function(rule: Function, source: _Source) -> Iterator[str]:
    node = source.function(rule.name)
    if node is None:
        yield f"there is no {rule.name}"
        return
    given = node.args
    names = {arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if arg}
    yield from (f"{rule.name} has no parameter {param}" for param in rule.params if param not in names)
    decorators = [ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list]
    if rule.decorator is not None and rule.decorator not in decorators:
        yield f"{rule.name} is not decorated by {rule.decorator}"
    if rule.is_async != isinstance(node, ast.AsyncFunctionDef):
        yield f"{rule.name} is {'not' if rule.is_async else 'now'} async"
    text = ast.unparse(node)
    yield from (f"{rule.name} nowhere says {said}" for said in rule.says if not _says(text, said))


def _field_names(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _says(text: str, said: str) -> bool:
    """Whether the text contains `said`, in either kind of quotes."""
    return said in text or said.replace('"', "'") in text
