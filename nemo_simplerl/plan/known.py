"""Well-known models, which are planned without their folders: known_models.yaml, read once."""

from pathlib import Path
from typing import Any

import yaml

from nemo_simplerl.config.shape import ModelShape, shape_of_hf

_FILE = Path(__file__).with_name("known_models.yaml")


def known_configs() -> dict[str, dict[str, Any]]:
    """What the file has of each model's config.json, by the model's name on the Hub."""
    table = yaml.load(_FILE.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        name: group["same"] | dict(zip(table["columns"], values, strict=True))
        for group in table["groups"]
        for name, values in group["models"].items()
    }


# By the last part of the name, which is that of the folder that `hf download` is told to write.
KNOWN_MODELS: dict[str, ModelShape] = {name.split("/")[-1]: shape_of_hf(hf) for name, hf in known_configs().items()}
