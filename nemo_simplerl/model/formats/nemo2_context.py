"""Writes what NeMo 2 keeps in `context/`: the model and its tokenizer as fiddle's JSON, and as YAML. Pure functions.

`load_context` of nemo.lightning.io builds the classes that `io.json` names from the arguments in it; tools of NeMo that
build nothing read `model.yaml`.
"""

from typing import Any

from nemo_simplerl.config.families import family_of

_MODELS = "nemo.collections.llm.gpt.model"
# The config class of a family; Llama's with the rotary scaling of 3.1 is another.
_CONFIGS = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "mistral": "MistralConfig7B"}
_LLAMA31 = "Llama31Config"
_AUTO_TOKENIZER = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer.AutoTokenizer"
_CONTEXT = "nemo.lightning.io.pl.TrainerContext"
_CALLABLES = {"activation_func": "torch.nn.functional.silu"}


def classes_of(hf: dict, settings: dict[str, Any]) -> tuple[str, str]:
    """Full names of NeMo 2's classes of a model and of its config. Raises ValueError for a family that NeMo 2 lacks."""
    family = family_of(hf)
    if family.model_type not in _CONFIGS:
        raise ValueError(f"model_type {family.model_type!r} has no class in nemo2; keep the model as hf or nemo.")
    module = f"{_MODELS}.{family.model_type}"
    config = _LLAMA31 if "scale_factor" in settings else _CONFIGS[family.model_type]
    return f"{module}.{family.architecture.removesuffix('ForCausalLM')}Model", f"{module}.{config}"


def io_json(hf: dict, settings: dict[str, Any], *, dtype: str, tokenizer: str | None) -> dict[str, Any]:
    """The content of `io.json`. dtype: of the weights, as torch names it. tokenizer: its folder in `context/`."""
    model, config = classes_of(hf, settings)
    values = {name: _Leaf(value) for name, value in settings.items()}
    names = _CALLABLES | {"params_dtype": f"torch.{dtype}"}
    values |= {name: _Name(full) for name, full in names.items()}
    tree = _Fiddle()
    arguments = {
        "config": tree.config(config, values, "<root>.model.config"),
        "tokenizer": _Leaf(None)
        if tokenizer is None
        else tree.config(_AUTO_TOKENIZER, {"pretrained_model_name": _Leaf(tokenizer)}, "<root>.model.tokenizer"),
    }
    root = {
        "model": tree.config(model, arguments, "<root>.model"),
        "trainer": _Leaf(None),
        "extra": _Leaf(None),
    }
    return {"root": tree.config(_CONTEXT, root, "<root>"), "objects": tree.objects, "version": "0.0.1"}


def model_yaml(hf: dict, settings: dict[str, Any], *, dtype: str, tokenizer: str | None) -> dict[str, Any]:
    """The content of `model.yaml`; arguments as in `io_json`."""
    model, config = classes_of(hf, settings)
    callables = {name: {"_target_": full, "_call_": False} for name, full in _CALLABLES.items()}
    callables["params_dtype"] = {"_target_": f"torch.{dtype}", "_call_": False}
    named = None if tokenizer is None else {"_target_": _AUTO_TOKENIZER, "pretrained_model_name": tokenizer}
    return {"_target_": model, "config": {"_target_": config} | settings | callables, "tokenizer": named}


class _Leaf:
    def __init__(self, value: Any):
        self.value = value

    def at(self, path: str) -> dict:
        return {"type": "leaf", "value": self.value, "paths": [path]}


class _Name:
    def __init__(self, full: str):
        self.full = full

    def at(self, path: str) -> dict:
        return _pyref(self.full) | {"paths": [path]}


class _Fiddle:
    """Objects of fiddle's JSON (fiddle/_src/experimental/serialization.py), added from the leaves to the root."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def config(self, class_name: str, arguments: dict[str, Any], path: str) -> dict:
        """A reference to a new Config of `class_name`. arguments: _Leaf, _Name, or a reference to a Config."""
        names = self._add("tuple", _builtin("tuple", [[f"Index(index={i})", name] for i, name in enumerate(arguments)]))
        about = {
            "fn_or_cls": _pyref(class_name),
            "argument_names": names,
            "argument_tags": self._add("dict", _empty_dict()),
            "argument_history": self._add("dict", _empty_dict()),
        }
        metadata = _pyref("fiddle._src.config.BuildableTraverserMetadata")
        about_ref = self._add("metadata", {"type": metadata, "items": _items(about), "metadata": metadata})
        values = {
            name: value if isinstance(value, dict) else value.at(f"{path}.{name}") for name, value in arguments.items()
        }
        entry = {"type": _pyref("fiddle._src.config.Config"), "items": _items(values), "metadata": about_ref}
        return self._add("config", entry | {"paths": [path]})

    def _add(self, kind: str, entry: dict) -> dict:
        key = f"{kind}_{len(self.objects) + 1}"
        self.objects[key] = entry
        return {"type": "ref", "key": key}


def _pyref(full: str) -> dict:
    module, _, name = full.rpartition(".")
    return {"type": "pyref", "module": module, "name": name}


def _items(values: dict[str, dict]) -> list:
    return [[f"Attr(name={name!r})", value] for name, value in values.items()]


def _builtin(name: str, items: list) -> dict:
    return {"type": _pyref(f"builtins.{name}"), "items": items, "metadata": None}


def _empty_dict() -> dict:
    return _builtin("dict", []) | {"metadata": _builtin("tuple", [])}
