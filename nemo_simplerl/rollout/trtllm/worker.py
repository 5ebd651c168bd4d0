"""Methods added to TensorRT-LLM's worker processes, which load this module by its name (see rollout/trtllm/values.py).

Only new method names: TensorRT-LLM refuses an extension that hides an attribute of its worker.
"""

from tensorrt_llm._ray_utils import control_action_decorator
from tensorrt_llm.llmapi.rlhf_utils import WorkerExtension

from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.trtllm.handles import open_handles


class Extension(WorkerExtension):
    """The worker of rollout/trtllm/engine.py, with digests and a reset of the prefix cache."""

    def simplerl_digests(self, handles: dict[str, str]) -> dict[str, int]:
        """`rollout.digest.digest` of the tensors that reach this worker's device, by name."""
        return {name: digest(tensor) for name, tensor in open_handles(handles[self._simplerl_uuid()], self.device_id)}

    @control_action_decorator
    def simplerl_reset_prefix_cache(self) -> None:
        """Forget which prompts the KV cache holds. Waits until no request runs."""
        self.engine.reset_prefix_cache()

    def _simplerl_uuid(self) -> str:
        from tensorrt_llm._torch.utils import get_device_uuid

        return get_device_uuid(self.device_id)
