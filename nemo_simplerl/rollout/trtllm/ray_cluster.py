"""A Ray cluster that only this process uses, as TensorRT-LLM needs one. The only module that imports Ray."""

import logging
import shutil
import signal
import threading
from pathlib import Path

import psutil

from nemo_simplerl.rollout.own_process.short_folder import make_short_folder

_OBJECT_STORE_BYTES = 80 * 2**20  # handles and token ids pass through it, never weights
_PREFIX = "simplerl-ray-"
# Ray adds a session of 26 characters of time and the process id to the folder:
# <folder>/session_<time>_<pid>/sockets/plasma_store.
_BELOW_FOLDER = len("/session_") + 26 + len("_4194304/sockets/plasma_store")
_GRACE_S = 5.0


def start_ray(*, num_gpus: int) -> Path:
    """Start the cluster; returns its folder, for `stop_ray`. `num_gpus` is what Ray counts, present or not.

    Raises OSError where there is no folder whose path is short enough for Ray's sockets.
    """
    import ray

    folder = make_short_folder(_PREFIX, _BELOW_FOLDER, "Ray")
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
        stop_ray(folder)
        raise
    finally:
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
    return folder


def stop_ray(folder: Path) -> None:
    """End the cluster, also one that did not start to its end, and delete its folder."""
    import ray

    try:
        ray.shutdown()
    finally:
        _end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def is_death(error: BaseException) -> bool:
    """Whether the error says that a worker process is gone."""
    import ray

    return isinstance(error, ray.exceptions.RayActorError)


def _end_processes_of(folder: Path) -> None:
    """End what Ray started in `folder` and did not end itself: of a start that failed it forgets its processes."""
    left = [process for process in psutil.Process().children(recursive=True) if _names(process, str(folder))]
    for process in left:
        process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=_GRACE_S)
    for process in stubborn:
        process.kill()


def _names(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in word for word in process.cmdline())
    except psutil.Error:  # it has ended, or is a zombie
        return False
