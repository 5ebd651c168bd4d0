"""The calls that the engine's process answers, by `vllm.LLM` in that process. Imports vLLM when it is started."""

from collections.abc import Callable
from typing import Any

SUPPORTED = "0.32."
EXTENSION = "nemo_simplerl.rollout.vllm.extension.Extension"


class Server:
    """One engine. Its weights are those of the last `finish`, or there are none. Names are Hugging Face's.

    sign_of_life: called between two steps of a call that may last.
    """

    def __init__(self, sign_of_life: Callable[[], None]):
        self._sign_of_life = sign_of_life
        self._llm: Any = None
        self._version: int | None = None

    def start(self, arguments: dict[str, Any], vocab_limit: int | None) -> list[str]:
        """Start the engine without weights; returns the device of each worker, in rank order.

        vocab_limit: ids from here on are never sampled.
        """
        import vllm

        if not vllm.__version__.startswith(SUPPORTED):
            raise ValueError(f"vLLM {SUPPORTED}x is needed, and {vllm.__version__} is installed here.")
        self._llm = vllm.LLM(**arguments, worker_extension_cls=EXTENSION)
        return self._llm.collective_rpc("simplerl_prepare", args=(vocab_limit,))

    def load(self, handles: list[str]) -> None:
        """Load one bucket, of which each worker opens its own handles. From here on there are no whole weights."""
        self._version = None
        self._llm.collective_rpc("simplerl_load", args=(handles,))

    def finish(self, version: int, digests: bool) -> list[dict[str, int]]:
        """All buckets are loaded. Returns each worker's digests of what the engine holds, by name; see held.py."""
        found = self._llm.collective_rpc("simplerl_digests") if digests else []
        # Prompts that were read with the old weights would be continued with the new ones.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running.")
        self._version = version
        return found

    def generate(
        self, prompts: list[list[int]], requests: list[tuple[int, dict[str, Any]]], version: int
    ) -> list[tuple[list[int], list[float], str]]:
        """Tokens, their log-probabilities and the reason of the end, of each request.

        requests: the index of a prompt, and the arguments of vLLM's SamplingParams.
        """
        from vllm import SamplingParams

        if self._version != version:
            raise RuntimeError(f"asked for samples of version {version}, and the engine holds {self._version}.")
        llm = self._llm
        llm.enqueue(
            [{"prompt_token_ids": prompts[index]} for index, _ in requests],
            [SamplingParams(**given) for _, given in requests],
            use_tqdm=False,
        )
        done = {}
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                if output.finished:
                    done[int(output.request_id)] = _answer(output)
            self._sign_of_life()
        return [done[number] for number in sorted(done)]  # requests are numbered as they come

    def sleep(self) -> None:
        """Give back the GPU memory of weights and KV cache."""
        self._version = None
        self._llm.sleep(level=2)

    def wake(self, tags: list[str]) -> None:
        """Take back the GPU memory of `weights` or `kv_cache`."""
        self._llm.wake_up(tags=tags)

    def close(self) -> None:
        """End vLLM's workers."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()


def _answer(output: Any) -> tuple[list[int], list[float], str]:
    (choice,) = output.outputs
    ids = list(choice.token_ids)
    return ids, [entry[id_].logprob for id_, entry in zip(ids, choice.logprobs, strict=True)], choice.finish_reason
