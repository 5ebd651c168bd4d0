"""The double against Transformer Engine's sources: names, parameters and demands, read without importing them.

signatures.json has what those of several releases say. `python -m nemo_simplerl.dry.te.contract FOLDER [VERSION]` reads
the package folder `transformer_engine` of another: prints where it and the double part, and with VERSION adds it.
"""

import ast
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("signatures.json")
_ATTENTION = "pytorch/attention/dot_product_attention/dot_product_attention.py"
# What the double stands in for, by file of the package: functions and methods whose parameters Megatron gives.
_FUNCTIONS = {
    "pytorch/module/linear.py": ("Linear.__init__", "Linear.forward"),
    "pytorch/module/layernorm_linear.py": ("LayerNormLinear.__init__", "LayerNormLinear.forward"),
    "pytorch/module/rmsnorm.py": ("RMSNorm.__init__",),
    _ATTENTION: ("DotProductAttention.__init__", "DotProductAttention.forward"),
    "pytorch/attention/rope.py": ("apply_rotary_pos_emb",),
    "pytorch/optimizers/fused_adam.py": ("FusedAdam.__init__", "FusedAdam.step"),
    "pytorch/optimizers/multi_tensor_apply.py": ("MultiTensorApply.__init__", "MultiTensorApply.__call__"),
    "pytorch/quantization.py": ("fp8_autocast",),
    "pytorch/distributed.py": ("is_fp8_activation_recompute_enabled", "CudaRNGStatesTracker.reset"),
    "pytorch/cpu_offload.py": ("get_cpu_offload_context",),
    "pytorch/utils.py": ("make_weak_ref",),
}
# What the double asserts in the words of the real one.
_DEMANDS = {
    _ATTENTION: (
        "DotProductAttention only supports CUDA tensors.",
        "Queries, keys and values must be 3D tensors when qkv_format = thd!",
        "Attention mask type must be padding or padding_causal for qkv_format=thd!",
        "cu_seqlens_q and cu_seqlens_kv can not be None when qkv_format = thd!",
        "cu_seqlens_q and cu_seqlens_q must both be in dtype torch.int32!",
    ),
    "pytorch/attention/rope.py": ("cu_seqlens must not be None when tensor_format is 'thd'.",),
}
Facts = dict[str, Any]


def facts_of(source: Path) -> Facts:
    """What the package folder `source` says: signatures, the names of modules and the texts of assertions."""
    trees = {file: _parsed(source / file) for file in (*_FUNCTIONS, *_DEMANDS)}
    signatures = {
        name: _parameters(node)
        for file, names in _FUNCTIONS.items()
        for name in names
        if (node := _function(trees[file], name)) is not None
    }
    texts = {
        file: {node.value for node in ast.walk(trees[file]) if isinstance(node, ast.Constant)} for file in _DEMANDS
    }
    return {
        "signatures": signatures,
        "names": {module: sorted(names & _bound(source, module)) for module, names in _modules().items()},
        "demands": {file: [text for text in wanted if text in texts[file]] for file, wanted in _DEMANDS.items()},
    }


def recorded() -> dict[str, Facts]:
    """The facts of the releases that the double was held against, by version."""
    found: dict[str, Facts] = json.loads(FACTS.read_text())
    return found


def differences(facts: Facts) -> list[str]:
    """Where the double and the sources that say these facts part, one line each."""
    found = []
    for name, double in _doubles().items():
        real = facts["signatures"].get(name)
        found += [f"there is no {name}"] if real is None else [f"{name}: {text}" for text in _unlike(double, real)]
    for module, names in _modules().items():
        found += [f"{module} has no {name}" for name in sorted(names - set(facts["names"].get(module, ())))]
    for file, wanted in _DEMANDS.items():
        found += [f"{file} no longer says: {text}" for text in wanted if text not in facts["demands"].get(file, ())]
    return found


def _unlike(double: Callable[..., Any], real: list[list[str | None]]) -> Iterator[str]:
    """How the parameters of the double part from the real ones, which have to come in the same order."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = {
        name: None if parameter.default is parameter.empty else repr(parameter.default)
        for name, parameter in inspect.signature(double).parameters.items()
        if parameter.kind not in kinds
    }
    theirs = {str(name): default for name, default in real}
    yield from (f"no parameter {name} any more" for name in own if name not in theirs)
    common = [name for name in own if name in theirs]
    if common != [name for name in theirs if name in own]:
        yield "the parameters come in another order"
    for name in common:
        if own[name] != theirs[name]:
            yield f"the default of {name} is {theirs[name]}, the double's {own[name]}"
    yield from (f"demands {name}, which the double does not" for name in theirs if name not in own and not theirs[name])


def _doubles() -> dict[str, Callable[..., Any]]:
    from nemo_simplerl.dry.te import attention, install, layers, optimizers

    found = {}
    for name in (name for names in _FUNCTIONS.values() for name in names):
        owner, _, method = name.rpartition(".")
        home = next(room for room in (layers, attention, optimizers, install) if hasattr(room, owner or name))
        found[name] = getattr(getattr(home, owner), method) if owner else getattr(home, name)
    return found


def _modules() -> Mapping[str, set[str]]:
    """The names that each module of the double has, without submodules."""
    from nemo_simplerl.dry.te.install import modules

    inner = {"ops", "__version__"}
    return {name: set(contents) - inner for name, contents in modules().items() if set(contents) - inner}


def _parsed(file: Path) -> ast.Module:
    """The file's tree; an empty one where there is no such file."""
    return ast.parse(file.read_text() if file.is_file() else "")


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    owner, _, function = name.rpartition(".")
    classes = [node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner]
    for body in classes if owner else [tree.body]:
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return node
    return None


def _parameters(node: ast.FunctionDef) -> list[list[str | None]]:
    """[name, default as text] of each parameter but *args and **kwargs; the default is None where it must be given."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    defaults = [None] * required + [ast.unparse(value) for value in arguments.defaults]
    keyword = [None if value is None else ast.unparse(value) for value in arguments.kw_defaults]
    pairs = zip([*positional, *arguments.kwonlyargs], [*defaults, *keyword], strict=True)
    return [[argument.arg, default] for argument, default in pairs]


def _bound(source: Path, module: str) -> set[str]:
    """Names that the module defines or imports."""
    path = source / module.replace(".", "/")
    tree = _parsed(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    names |= {target.id for target in assigned if isinstance(target, ast.Name)}
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return names | {alias.asname or alias.name for node in imports for alias in node.names}


def _main(folder: str, version: str | None = None) -> None:
    facts = facts_of(Path(folder))
    print("\n".join(differences(facts)) or "the double keeps to these sources")
    if version is not None:
        known = recorded() if FACTS.exists() else {}
        FACTS.write_text(json.dumps(known | {version: facts}, indent=1) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
