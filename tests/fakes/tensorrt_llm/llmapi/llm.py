from typing import Any

from tensorrt_llm.executor.ray_executor import RayExecutor
from tensorrt_llm.executor.result import GenerationResult
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs
from tensorrt_llm.sampling_params import SamplingParams


class RequestOutput(GenerationResult):
    """The result of a request; awaited until it is there."""


class BaseLLM:
    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        for key in kwargs:
            if key not in {*TorchLlmArgs.model_fields, "_mpi_session", "backend"}:
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        self.args = TorchLlmArgs(
            model=model,
            tokenizer=tokenizer,
            tokenizer_mode=tokenizer_mode,
            skip_tokenizer_init=skip_tokenizer_init,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            revision=revision,
            tokenizer_revision=tokenizer_revision,
            **kwargs,
        )
        if self.args.orchestrator_type != "ray":
            raise NotImplementedError("the double: only the Ray orchestrator can be refitted")
        size = self.args.tensor_parallel_size
        worker_kwargs = {"llm_args": self.args, "ray_worker_extension_cls": self.args.ray_worker_extension_cls}
        self._executor = RayExecutor(worker_kwargs, size, None, is_llm_executor=True, tp_size=size)

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
    ) -> RequestOutput:
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        params = sampling_params or SamplingParams()
        if params.end_id is None:
            raise ValueError(
                "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id for "
                "sampling_params"
            )
        params.check_stop_words()
        self._check_arguments(len(inputs), params)
        return RequestOutput(self._executor.submit(list(inputs), params))

    def _check_arguments(self, prompt_len: int, params: SamplingParams) -> None:
        args = self.args
        if args.max_num_tokens and prompt_len > args.max_num_tokens:
            raise ValueError(
                f"The sum of prompt length ({float(prompt_len)}), query length (0) should not exceed max_num_tokens "
                f"({args.max_num_tokens})"
            )
        if args.max_input_len and prompt_len > args.max_input_len:
            raise ValueError(f"prompt length ({prompt_len}) should not exceed max_input_len ({args.max_input_len})")

    def shutdown(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class _TorchLLM(BaseLLM):
    def _collective_rpc(self, method, args=(), kwargs=None, non_block=False, unique_reply_rank=None) -> list:
        if hasattr(self._executor, "collective_rpc"):
            return self._executor.collective_rpc(method, args, kwargs, non_block, unique_reply_rank)
        raise ValueError(f"Executor type {type(self._executor)} does not support collective RPC.")


class LLM(_TorchLLM):
    pass
