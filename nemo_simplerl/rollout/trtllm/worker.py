"""Methods added to TensorRT-LLM's worker processes, which load this module by its name (see rollout/trtllm/values.py).

No name that its worker has: TensorRT-LLM refuses an extension that hides an attribute of its worker. What moved between
its releases is not imported here.
"""

import os
import sys
import threading
import traceback
from pathlib import Path

import torch
from tensorrt_llm.llmapi.rlhf_utils import WorkerExtension

from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.own_process.handles import open_handles
from nemo_simplerl.rollout.trtllm.values import EVENT_LOOP_REPORT


class Extension(WorkerExtension):
    """The worker of rollout/trtllm/host.py: with digests, a reset of the prefix cache, and a watch over its loop."""

    def update_weights(self, ipc_handles: dict[str, str] | None = None) -> None:
        """TensorRT-LLM's own, which queues copies; ends when the GPU has done them. The sender then reuses the memory
        that they read."""
        super().update_weights(ipc_handles)
        torch.cuda.synchronize(self.device_id)

    def simplerl_digests(self, handles: dict[str, str]) -> dict[str, int]:
        """`rollout.digest.digest` of the tensors that reach this worker's device, by name."""
        return {name: digest(tensor) for name, tensor in open_handles(handles[self._simplerl_uuid()], self.device_id)}

    def simplerl_reset_prefix_cache(self) -> None:
        """Forget which prompts the KV cache holds. Waits until no request runs."""
        with self.engine.control_action():
            self.engine.reset_prefix_cache()

    def simplerl_watch_event_loop(self, reports: str) -> None:
        """End this process as soon as the engine's event loop has ended by an error, and write why into a file of the
        folder `reports`.

        The process would live on: nothing answers its requests any more, and whoever asks it to sleep, wake or load
        weights waits for its loop without end. When it is gone, Ray tells everyone who waits.
        """
        engine, previous = self.engine, threading.excepthook
        errors: list[str] = []

        def remember(args: threading.ExceptHookArgs) -> None:
            if args.thread is engine.worker_thread:
                errors.extend(traceback.format_exception_only(args.exc_type, args.exc_value))
            previous(args)

        def watch() -> None:
            engine.worker_thread.join()
            if self.doing_shutdown:
                return
            reason = "".join(errors).strip() or "it gave no error"
            Path(reports, f"{EVENT_LOOP_REPORT}{self.global_rank}").write_text(reason)
            print(f"the engine's event loop has ended: {reason}", file=sys.stderr, flush=True)
            os._exit(1)

        threading.excepthook = remember
        threading.Thread(target=watch, name="simplerl-watch", daemon=True).start()

    def _simplerl_uuid(self) -> str:
        from tensorrt_llm._torch.utils import get_device_uuid

        return get_device_uuid(self.device_id)
