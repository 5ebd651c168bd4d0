import importlib

import ray

from tensorrt_llm._ray_utils import control_action_decorator
from tensorrt_llm._torch.pyexecutor.py_executor import PyExecutor
from tensorrt_llm._torch.utils import get_device_uuid
from tensorrt_llm._torch.virtual_memory import materialize_with_tag, release_with_tag, verify_sleep_wakeup_tags


@ray.remote
class RayWorkerWrapper:
    def __init__(self, worker_cls, worker_kwargs, world_size, rank):
        self.gpu = int(ray.get_gpu_ids()[0])
        extension = worker_kwargs["llm_args"].ray_worker_extension_cls
        worker_cls = RayWorkerWrapper._inject_worker_extension(worker_cls, extension)
        self.worker = worker_cls(device_id=self.gpu, global_rank=rank, **worker_kwargs)

    def generate(self, requests) -> list:
        return self.worker.engine.generate(requests)

    def report_device_id(self) -> str:
        return get_device_uuid(self.gpu)

    def call_worker_method(self, method_name: str, *args, **kwargs):
        if not hasattr(self.worker, method_name):
            raise AttributeError(f"The RayGPUWorker has no method called '{method_name}'.")
        return getattr(self.worker, method_name)(*args, **kwargs)

    @staticmethod
    def _inject_worker_extension(worker_class, extension_cls_name):
        module_name, _, name = extension_cls_name.rpartition(".")
        extension_cls = getattr(importlib.import_module(module_name), name)
        for attr in dir(extension_cls):
            if not attr.startswith("__") and hasattr(worker_class, attr):
                raise ValueError(
                    f"Worker class {worker_class.__name__} already defines '{attr}', "
                    f"which conflicts with extension {extension_cls.__name__}."
                )
        return type(f"{worker_class.__name__}With{extension_cls.__name__}", (worker_class, extension_cls), {})


class RayGPUWorker:
    def __init__(self, device_id: int, global_rank: int, llm_args):
        self.device_id, self.global_rank, self.llm_args = device_id, global_rank, llm_args
        self.engine = None

    def setup_engine(self) -> None:
        self.engine = PyExecutor(self.llm_args)

    @control_action_decorator
    def sleep(self, sleep_tags: list[str]) -> None:
        self._require_sleep()
        release_with_tag(*verify_sleep_wakeup_tags(sleep_tags))

    @control_action_decorator
    def wakeup(self, wakeup_tags: list[str]) -> None:
        self._require_sleep()
        materialize_with_tag(*verify_sleep_wakeup_tags(wakeup_tags))

    def start(self) -> None: ...

    def shutdown(self) -> None: ...

    def _require_sleep(self) -> None:
        if not self.llm_args.enable_sleep:
            raise ValueError("Sleep feature is not enabled, please set enable_sleep=True in the LLM arguments.")
