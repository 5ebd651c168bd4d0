"""A pool whose workers score with a user's function, and which ends what calls it once the function fails always."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any

from nemo_simplerl.python_child import module_command
from nemo_simplerl.reward.serving.pool import Grade, Item, Observer, RewardPool
from nemo_simplerl.reward.serving.worker_process import WorkerUnusable
from nemo_simplerl.user_functions import source_digest, user_function

_COMMAND = module_command("nemo_simplerl.reward.functions.worker")
_ALWAYS = 16  # failures from the first response on that are taken for a failure on everything


class FunctionFails(ValueError):
    """The function cannot be loaded, or failed on every response. The message holds its traceback."""


class FunctionPool(RewardPool):
    """`RewardPool` whose grades have the score and the metrics of the function FILE.py:NAME.

    Nothing is cached: a function may look at all of a response. What it raises on, or does not finish in time or
    memory, counts as no answer. FunctionFails where it does so on the first 16 responses or on all of a call.
    """

    def __init__(self, function: str, num_workers: int, timeout_s: float, memory_limit_mb: int) -> None:
        self.function = user_function(function)
        self.digest = source_digest(self.function)
        self._has_scored = False
        # What the file holds now is what every worker runs, also one that starts later. Deleted when it is closed.
        self._source = NamedTemporaryFile(prefix="simplerl-reward-", suffix=".py")  # noqa: SIM115
        self._source.write(self.function.file.read_bytes())
        self._source.flush()
        command = (*_COMMAND, function, self._source.name)
        try:
            super().__init__(num_workers, timeout_s, memory_limit_mb, command, cache_entries=0)
        except WorkerUnusable as error:
            raise FunctionFails(f"reward.function={function} cannot be loaded:\n{error}") from error

    def close(self) -> None:
        super().close()
        self._source.close()

    def _parts(self, items: Sequence[Item]) -> list[tuple[bytes, Item]]:
        """Every item is scored, also one that is like another."""
        return [(b"%d" % index, (*item, {})[:3]) for index, item in enumerate(items)]

    def _observer(self) -> Observer:
        failures: list[Grade] = []  # of this call
        lock = threading.Lock()

        def observe(grade: Grade) -> Grade:
            if not grade.error:
                self._has_scored = True
                return grade
            with lock:
                failures.append(grade)
                if not self._has_scored and len(failures) >= _ALWAYS:
                    raise FunctionFails(self._told(len(failures), grade))
            return replace(grade, verdict="no_answer")

        return observe

    def _collect(self, work: Any, graded: Sequence[list[Grade]]) -> list[Grade]:
        grades = super()._collect(work, graded)
        failed = [grade for grade in grades if grade.error]
        if failed and len(failed) == len(grades) and (not self._has_scored or len(failed) >= _ALWAYS):
            raise FunctionFails(self._told(len(failed), failed[-1]))
        return grades

    def _told(self, count: int, last: Grade) -> str:
        file, name = self.function
        return (
            f"reward.function={file}:{name} failed on everything, {count} responses in a row; mend it and start again. "
            f"The last failure ({last.status}):\n{last.error}"
        )
