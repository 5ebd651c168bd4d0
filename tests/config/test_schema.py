"""The comments of the schema: every key has one, for the person who sets it."""

import inspect
import re

from nemo_simplerl.config import schema


def test_every_key_has_a_comment_that_says_what_it_means():
    source = inspect.getsource(schema)
    lines = source.splitlines()
    without = [
        match[1]
        for above, line in zip(lines, lines[1:], strict=False)
        if (match := re.fullmatch(r"    (\w+): (?!\w*Config$).*", line))
        and "  # " not in line
        and not above.lstrip().startswith("#")
    ]
    assert without == []
