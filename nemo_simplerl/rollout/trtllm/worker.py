"""What TensorRT-LLM's worker processes learn beside what they can. Loaded there by name; see rollout/trtllm/engine.py.

Only new method names: TensorRT-LLM refuses an extension that hides an attribute of its worker.
"""

from tensorrt_llm._ray_utils import control_action_decorator
from tensorrt_llm.llmapi.rlhf_utils import WorkerExtension

from nemo_simplerl.rollout.refit import digest
from nemo_simplerl.rollout.trtllm.handles import open_handles


class Extension(WorkerExtension):
    def simplerl_digests(self, handles: dict[str, str]) -> dict[str, int]:
        """By name, `rollout.refit.digest` of the tensors that reach this worker's device."""
        return {name: digest(tensor) for name, tensor in open_handles(handles[self._simplerl_uuid()], self.device_id)}

    @control_action_decorator
    def simplerl_reset_prefix_cache(self) -> None:
        """Forget which prompts the KV cache holds. Waits until no request runs."""
        self.engine.reset_prefix_cache()

    def _simplerl_uuid(self) -> str:
        from tensorrt_llm._torch.utils import get_device_uuid

        return get_device_uuid(self.device_id)
