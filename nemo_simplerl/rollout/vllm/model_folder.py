"""The folder that vLLM takes for the model's: config.json without weights."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)


def cache_root(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder where vLLM keeps what it has compiled."""
    caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("VLLM_CACHE_ROOT") or f"{caches}/vllm").expanduser()


def model_folder(config_file: Path, root: Path | None, otherwise: Path) -> Path:
    """A folder with a copy of config.json and nothing else: beside weights vLLM may build another model than it says.

    root: the folder lies below this one and is the same for equal files, because vLLM finds what it has compiled by
    the model's path. otherwise: it lies here where there is no root, or none that can be written.
    """
    content = config_file.read_bytes()
    if root is not None:
        folder = root / "simplerl_models" / hashlib.sha256(content).hexdigest()[:16]
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            mine = folder / f".{os.getpid()}"
            mine.write_bytes(content)
            os.replace(mine, folder / "config.json")  # another engine may be reading the one that was there
            return folder
        log.warning(f"{folder} cannot be written: vLLM compiles the model anew at every start")
    folder = otherwise / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    return folder
