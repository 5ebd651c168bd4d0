import base64

import torch

from tensorrt_llm import serialization
from tensorrt_llm._ray_utils import control_action_decorator
from tensorrt_llm._torch.utils import get_device_uuid


class WorkerExtension:
    @control_action_decorator
    def update_weights(self, ipc_handles: dict | None = None):
        """One bucket of weights, or None: the end of a refit."""
        model = self.engine.model_engine.model
        if not hasattr(model, "first_pre_reload_weights"):
            model.first_pre_reload_weights = True
        if ipc_handles is None:
            model.post_load_weights()
            self.engine.reset_prefix_cache()
            del model.first_pre_reload_weights
            return
        device_uuid = get_device_uuid(self.device_id)
        if device_uuid not in ipc_handles:
            raise ValueError(f"Device UUID {device_uuid} not found in ipc_handles")
        handles = ipc_handles[device_uuid]
        if isinstance(handles, str):
            handles = serialization.loads(base64.b64decode(handles))
        if not isinstance(handles, list):
            raise ValueError(f"Deserialized data must be a list, got {type(handles).__name__} instead")
        weights = {}
        for param_name, (func, args) in handles:
            list_args = list(args)
            if func is not torch.multiprocessing.reductions.rebuild_tensor:  # that of a CPU takes no device
                list_args[6] = self.device_id
            weights[param_name] = func(*list_args)
        self.engine.weights_change()
        self.engine.model_engine.model_loader.reload(model, weights, allow_partial_loading=True)

    def check_weights_updated(self) -> bool:
        return all(not parameter.any() for parameter in self.engine.model_engine.model.parameters())
