"""Times as NeMo writes them: DD:HH:MM:SS."""

import re

_FORM = re.compile(r"(\d+):([01]\d|2[0-3]):([0-5]\d):([0-5]\d)")


def seconds_of(text: str) -> int:
    """Seconds in a duration: `00:03:30:00` is 12600. Raises ValueError for another form, and for a duration of zero."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form DD:HH:MM:SS, such as 00:03:30:00 for three hours and a half")
    days, hours, minutes, seconds = map(int, match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError(f"{text!r} is no time at all; null sets no limit")
    return total
