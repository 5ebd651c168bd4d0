"""NeMo 2 folders: `context/` describes the model, `weights/` holds it.

`context/io.json` is a tree of objects in fiddle's JSON (version 0.0.1), `context/model.yaml` the same tree with every
default filled in, which not every folder has. Files of `context/` that are named by a UUID alone are pickles, and are
not opened.
"""

from pathlib import Path
from typing import Any

from nemo_simplerl.config.forms.description import Description, plain, read_json, read_yaml
from nemo_simplerl.config.forms.nemo2_classes import defaults_of

CONTEXT, WEIGHTS = "context", "weights"
IO_JSON, MODEL_YAML = "io.json", "model.yaml"
TOKENIZER = "nemo_tokenizer"  # folder of context/ to which NeMo's importers save the tokenizer
_ADAPTER = "adapter_metadata.json"
_HF_WEIGHTS = "hf_weights"
# The argument of a tokenizer class that names its files.
_TOKENIZER_ARGUMENTS = ("pretrained_model_name", "model_path", "vocab_file")


def is_nemo2(path: Path) -> bool:
    """Whether `path` is a NeMo 2 folder, or a part of one."""
    weights = path / WEIGHTS
    parts = any((weights / name).is_file() for name in (".metadata", _ADAPTER)) or any(weights.glob("*.distcp"))
    return _context_of(path) is not None or parts


def describe(path: Path) -> Description:
    """The model of a NeMo 2 folder. Raises ValueError that says what the folder lacks or what it is instead."""
    weights = path / WEIGHTS if (path / WEIGHTS).is_dir() else path
    if (weights / _ADAPTER).is_file():
        raise ValueError(
            f"{path} is an adapter (LoRA) without its base model's weights; merge it in NeMo (llm.peft.merge_lora)."
        )
    if (path / _HF_WEIGHTS).is_dir():
        raise ValueError(f"{path} holds its weights in Hugging Face's form; give {path / _HF_WEIGHTS}.")
    context = _context_of(path)
    if context is None:
        raise ValueError(f"{path} lacks {CONTEXT}/{IO_JSON} and {CONTEXT}/{MODEL_YAML}; copy the whole NeMo 2 folder.")
    if weights == path and not (path / ".metadata").is_file():
        raise ValueError(f"{path} lacks {WEIGHTS}/; copy the whole NeMo 2 folder.")
    given: dict[str, Any] = {}
    class_name, tokenizer, where = "", None, context / IO_JSON
    if where.is_file():
        given, class_name, tokenizer = _from_io_json(where)
    filled: dict[str, Any] = {}
    if (context / MODEL_YAML).is_file():
        filled, named, named_tokenizer = _from_model_yaml(context / MODEL_YAML)
        where = where if given else context / MODEL_YAML
        class_name, tokenizer = class_name or named, tokenizer or named_tokenizer
    return Description(
        form="nemo2",
        weights=weights,
        where=where,
        # NeMo builds the model of what io.json was given, and of the class's defaults, which model.yaml spells out.
        settings=defaults_of(class_name) | filled | given,
        class_name=class_name,
        tokenizer=tokenizer,
        tokenizer_folder=_tokenizer_folder(context, tokenizer),
    )


def _context_of(path: Path) -> Path | None:
    """The folder of io.json; the first releases of NeMo 2 wrote it at the top."""
    if (path / CONTEXT / IO_JSON).is_file() or (path / CONTEXT / MODEL_YAML).is_file():
        return path / CONTEXT
    return path if (path / IO_JSON).is_file() else None


def _from_io_json(path: Path) -> tuple[dict[str, Any], str, str | None]:
    """The given arguments of the model's config, the name of its class, and the tokenizer's name."""
    content = read_json(path)
    try:
        tree = _Tree(content)
        config = tree.at("<root>.model.config") or tree.follow("model", "config")
        if config is None:
            raise ValueError("it holds no model with a config")
        arguments, class_name = tree.arguments(config)
        settings = {name: tree.plain(value) for name, value in arguments.items()}
        tokenizer = tree.at("<root>.model.tokenizer") or tree.follow("model", "tokenizer")
        return settings, class_name, tree.tokenizer_name(tokenizer) if tokenizer else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no context of NeMo 2 ({error}).") from error


class _Tree:
    """The objects of fiddle's JSON, of which single ones are looked at and none is built."""

    def __init__(self, content: dict[str, Any]):
        self._objects, self._root = content["objects"], content["root"]

    def at(self, path: str) -> dict[str, Any] | None:
        """The object at a dotted path below `<root>`."""
        return next((found for found in self._objects.values() if path in (found.get("paths") or ())), None)

    def follow(self, *names: str) -> dict[str, Any] | None:
        """The object that is reached from the root by the named arguments."""
        found = self._objects.get(self._root.get("key"))
        for name in names:
            value = self.arguments(found)[0].get(name) if found else None
            found = self._objects.get(value["key"]) if value and value.get("type") == "ref" else None
        return found

    def arguments(self, config: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
        """The given arguments of a class, not yet read, and the name of the class."""
        metadata = self._objects[config["metadata"]["key"]]
        about = dict(zip(("fn_or_cls", "argument_names"), (value for _, value in metadata["items"]), strict=False))
        names = [self.plain(name) for _, name in self._objects[about["argument_names"]["key"]]["items"]]
        values = [value for _, value in config["items"]]
        return dict(zip(names, values, strict=True)), about["fn_or_cls"]["name"]

    def plain(self, value: Any) -> Any:
        """A leaf's value, the last part of a function's or dtype's name, a list; "?" for any other object."""
        if not isinstance(value, dict):
            return value
        if value["type"] == "leaf":
            return value["value"]
        if value["type"] == "pyref":
            return value["name"].rpartition(".")[2]
        target = self._objects[value["key"]]
        is_row = target["type"].get("name") in ("list", "tuple")
        return [item.get("value") if isinstance(item, dict) else item for _, item in target["items"]] if is_row else "?"

    def tokenizer_name(self, tokenizer: dict[str, Any]) -> str | None:
        """The folder or hub name of a tokenizer; None where the object is a pickle beside io.json."""
        if not isinstance(tokenizer.get("metadata"), dict):
            return None
        arguments, _ = self.arguments(tokenizer)
        for name in _TOKENIZER_ARGUMENTS:
            value = arguments.get(name)
            if isinstance(value, dict) and value.get("type") == "ref":  # a name of the hub, wrapped
                value = self.arguments(self._objects[value["key"]])[0].get("attr")
            if value is not None and isinstance(text := self.plain(value), str):
                return text
        return None


def _from_model_yaml(path: Path) -> tuple[dict[str, Any], str, str | None]:
    """All settings of the model's config, the name of its class, and the tokenizer's name."""
    content = read_yaml(path)
    config, tokenizer = content.get("config"), content.get("tokenizer")
    if not isinstance(config, dict):
        raise ValueError(f"{path} describes no model: it has no section config.")
    settings = {str(key): plain(value) for key, value in config.items() if key != "_target_"}
    names = [tokenizer.get(name) for name in _TOKENIZER_ARGUMENTS] if isinstance(tokenizer, dict) else []
    class_name = plain(config) if "_target_" in config else ""
    return settings, str(class_name), next((name for name in names if isinstance(name, str)), None)


def _tokenizer_folder(context: Path, name: str | None) -> Path | None:
    """The folder inside `context` that holds the tokenizer's files."""
    for candidate in (name, TOKENIZER):
        if candidate and not Path(candidate).is_absolute() and ".." not in Path(candidate).parts:
            folder = context / candidate
            if folder.is_dir() and candidate != ".":
                return folder
    return None
