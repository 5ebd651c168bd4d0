"""A grader that needs no worker."""

import zlib

from nemo_simplerl.reward.serving.pool import Grade


class GraderByText:
    """Says that a third of all responses are right, by their texts alone, and counts those that it grades."""

    def __init__(self):
        self.graded = 0

    def grade(self, items):
        self.graded += len(items)
        verdicts = ("correct", "incorrect", "no_answer")
        return [Grade(verdicts[zlib.crc32(text.encode()) % 3], "ok", 0) for _, text, *_ in items]

    def close(self) -> None: ...
