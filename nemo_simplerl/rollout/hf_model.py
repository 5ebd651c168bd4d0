"""A transformers model without weights, from a folder that any version of transformers wrote."""

import json
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from nemo_simplerl.config.families import for_transformers
from nemo_simplerl.user_files import read_text

try:  # transformers 5
    from transformers.initialization import no_init_weights
except ImportError:
    from transformers.modeling_utils import no_init_weights


def read_config(folder: str | Path) -> PretrainedConfig:
    """The config of a model folder. The installed transformers is given our values: it may misread another version's.

    Raises ValueError for a model type that it does not know, and for keys that contradict each other.
    """
    file = Path(folder) / "config.json"
    try:
        values = for_transformers(json.loads(read_text(file)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{file}: model_type {model_type!r} is none that this version of transformers knows.")
    return CONFIG_MAPPING[model_type].from_dict(values)


def empty_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype = torch.float32, **options
) -> PreTrainedModel:
    """A model of uninitialised weights on `device`. The caller's random state is left as it was.

    options: of AutoModelForCausalLM.from_config.
    """
    with no_init_weights(), device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    model.tie_weights()  # left out where weights are not initialised
    return model
