"""A `.nemo` as nemo-toolkit reads it. The only importer of nemo, and a late one: the import takes ten seconds."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any


def is_installed() -> bool:
    """Whether nemo-toolkit is installed."""
    return find_spec("nemo") is not None


def config_seen_by_nemo(path: str | Path) -> dict[str, Any]:
    """The config of an archive as nemo-toolkit's SaveRestoreConnector reads it.

    Raises whatever NeMo raises for an archive it cannot open.
    """
    from nemo.core.classes import ModelPT
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
    from omegaconf import OmegaConf

    config = SaveRestoreConnector().load_config_and_state_dict(ModelPT, str(path), return_config=True)
    return OmegaConf.to_container(config)
