"""A Ray cluster that only this process uses, as TensorRT-LLM needs one. The only module that imports Ray."""

import logging
import shutil
import signal
import tempfile
import threading
from pathlib import Path

_OBJECT_STORE_BYTES = 80 * 2**20  # handles and token ids pass through it, never weights


def start_ray(*, num_gpus: int) -> Path:
    """Start the cluster; returns its folder, for `stop_ray`. `num_gpus` is what Ray counts, present or not."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="simplerl-ray-"))
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            num_cpus=num_gpus + 1,
            num_gpus=num_gpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
    return folder


def stop_ray(folder: Path) -> None:
    """End the cluster and delete its folder."""
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
