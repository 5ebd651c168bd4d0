"""Which of Megatron's forms a folder has, told by what is in it and never by its name."""

from collections.abc import Callable
from pathlib import Path

from nemo_simplerl.config.families import FAMILIES
from nemo_simplerl.config.forms import bridge, megatron, nemo2
from nemo_simplerl.config.forms.description import Description, read_json

# Form: whether a path has it, and the description of the model there.
FORMS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Description]]] = {
    "nemo2": (nemo2.is_nemo2, nemo2.describe),
    "bridge": (bridge.is_bridge, bridge.describe),
    "megatron": (megatron.is_megatron, megatron.describe),
}


def form_of(path: Path) -> str | None:
    """The name in FORMS of the form that `path` has, the first that fits; None where none does."""
    return next((name for name, (fits, _) in FORMS.items() if path.is_dir() and fits(path)), None)


def named_family(described: Description) -> str:
    """The model_type to take where a model's settings fit several families: the longest name of a family in its class,
    or the one in the config.json that came along, or else llama, as which all of those compute."""
    stems = {family.architecture.removesuffix("ForCausalLM").lower(): name for name, family in FAMILIES.items()}
    if found := [stem for stem in stems if stem in described.class_name.lower()]:
        return stems[max(found, key=len)]
    folder = described.tokenizer_folder
    is_there = folder is not None and (folder / "config.json").is_file()
    named = read_json(folder / "config.json").get("model_type") if folder and is_there else None
    return named if isinstance(named, str) and named in FAMILIES else "llama"
