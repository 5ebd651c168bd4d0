import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list | None = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: object = None


class GenerationResult:
    def __init__(self, future: asyncio.Future):
        self._future = future
        self.outputs: list[CompletionOutput] = []

    @property
    def finished(self) -> bool:
        return bool(self.outputs)

    async def aresult(self) -> "GenerationResult":
        self.outputs = [await self._future]
        return self

    def __await__(self):
        return self.aresult().__await__()
