"""The engine, on ranks where none lives."""

from collections.abc import Iterable, Sequence

from nemo_simplerl.rollout.base import Bucket, Completion, SamplingParams


class EngineElsewhere:
    """Stands for the engines of other ranks, in the place of a RolloutEngine. It holds no weights, only remembers
    which version the engines hold, and never samples."""

    batch_size: int | None = None
    generates = False
    sleeps_between_rollouts = False

    def __init__(self) -> None:
        self.weight_version: int | None = None

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        """See RolloutEngine.refit. All buckets are consumed and none is kept."""
        for _ in buckets:
            pass
        self.weight_version = version
        return {}

    def invalidate(self, reason: str) -> None:
        self.weight_version = None

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> Sequence[Completion]:
        raise RuntimeError("no engine lives on this rank; generate on the ranks of placement.engine.")

    def sleep(self) -> None:
        """Nothing is held here that could sleep."""

    def wake(self) -> None:
        """Nothing sleeps here."""

    def close(self) -> None:
        """Nothing is open here."""
