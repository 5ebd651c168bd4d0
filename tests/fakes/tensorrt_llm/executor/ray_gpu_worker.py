import gc
import importlib
import os
from typing import Any

import ray
import torch

from tensorrt_llm._ray_utils import control_action_decorator
from tensorrt_llm._torch import cuda_stream, virtual_memory
from tensorrt_llm._torch.pyexecutor.py_executor import _MODEL, PyExecutor
from tensorrt_llm._torch.utils import get_device_uuid
from tensorrt_llm._torch.virtual_memory import materialize_with_tag, release_with_tag, verify_sleep_wakeup_tags


def resolve_obj_by_qualname(qualname: str) -> Any:
    module_name, obj_name = qualname.rsplit(".", 1)
    return getattr(importlib.import_module(module_name), obj_name)


# Actor methods run one after the other. Requests go around them, by an RPC server of the worker: here by a thread.
@ray.remote(concurrency_groups={"rpc": 1})
class RayWorkerWrapper:
    def __init__(self, worker_cls, worker_kwargs, world_size, rank):
        self.master_address = os.environ["MASTER_ADDR"]
        self.world_size = world_size
        self.rank = rank
        self.gpu = int(ray.get_gpu_ids()[0])
        self.worker_cls = RayWorkerWrapper._inject_worker_extension(
            worker_cls, worker_kwargs.pop("ray_worker_extension_cls", None)
        )
        self.worker_kwargs = worker_kwargs

    def setup_tcp_store(self) -> int:
        if self.rank != 0:
            raise RuntimeError("Only the master worker can setup TCP store")
        return 0

    def setup_distributed_env_and_worker(self, port: int) -> None:
        self.worker = self.worker_cls(device_id=self.gpu, rank=self.rank, **self.worker_kwargs)

    def _require_worker(self) -> None:
        if not hasattr(self, "worker"):
            raise RuntimeError("Have not setup distributed environment and worker yet")

    @ray.method(concurrency_group="rpc")
    def submit(self, requests) -> list:
        return self.worker.engine.await_responses(requests)

    def report_device_id(self) -> str:
        self._require_worker()
        return get_device_uuid(self.gpu)

    def call_worker_method(self, method_name: str, *args, **kwargs):
        self._require_worker()
        if not hasattr(self.worker, method_name):
            raise AttributeError(f"The RayGPUWorker has no method called '{method_name}'.")
        return getattr(self.worker, method_name)(*args, **kwargs)

    def shutdown(self) -> None:
        if hasattr(self, "worker"):
            self.worker.shutdown()

    @staticmethod
    def _inject_worker_extension(worker_class, extension_cls_name):
        if not extension_cls_name:
            return worker_class
        try:
            extension_cls = resolve_obj_by_qualname(extension_cls_name)
        except (ImportError, AttributeError, ValueError) as e:
            raise RuntimeError(f"Failed to load worker extension '{extension_cls_name}'") from e
        for attr in dir(extension_cls):
            if not attr.startswith("__") and hasattr(worker_class, attr):
                raise ValueError(
                    f"Worker class {worker_class.__name__} already defines '{attr}', "
                    f"which conflicts with extension {extension_cls.__name__}."
                )
        derived_name = f"{worker_class.__name__}With{extension_cls.__name__}"
        return type(derived_name, (worker_class, extension_cls), {"__module__": worker_class.__module__})


class RayGPUWorker:
    def __init__(self, device_id: int, rank: int, llm_args, postproc_worker_config=None, is_llm_executor=None):
        cuda_stream.stand_in_for_cuda()
        self.device_id, self.global_rank, self.llm_args = device_id, rank, llm_args
        self.doing_shutdown = False
        self.engine = None

    def setup_engine(self) -> None:
        self.engine = PyExecutor(self.llm_args)

    @control_action_decorator
    def sleep(self, sleep_tags: list[str]) -> None:
        if not self.llm_args.enable_sleep:
            raise ValueError("Sleep feature is not enabled, please set enable_sleep=True in the LLM arguments.")
        tags = verify_sleep_wakeup_tags(sleep_tags)
        torch.cuda.synchronize()
        release_with_tag(*tags)
        torch.cuda.synchronize()
        gc.collect()
        if _MODEL not in virtual_memory.released:
            raise RuntimeError("the double: the weights stay on the GPU while it sleeps, and the trainer has no room")

    @control_action_decorator
    def wakeup(self, wakeup_tags: list[str]) -> None:
        if not self.llm_args.enable_sleep:
            raise ValueError("Sleep feature is not enabled, please set enable_sleep=True in the LLM arguments.")
        tags = verify_sleep_wakeup_tags(wakeup_tags)
        torch.cuda.synchronize()
        materialize_with_tag(*tags)
        torch.cuda.synchronize()

    def start(self) -> None: ...

    def shutdown(self) -> None:
        if self.doing_shutdown:
            return
        self.doing_shutdown = True
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
