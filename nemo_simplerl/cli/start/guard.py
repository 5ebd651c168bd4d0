"""Ends a command that was given what it cannot use: a line that says what to mend, and exit status 2.

Whatever else is raised is a fault of ours and keeps its traceback. Under torchrun the line is the last one on the
terminal: torchrun prints it at the end of its own report, which would bury it otherwise.
"""

import argparse
import errno
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import nemo_simplerl
from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.files import NotSaved

UNUSABLE = 2  # exit status for input that cannot be used
DEBUG = "SIMPLERL_DEBUG"  # set to show the traceback instead
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for why a rank ended
_PATIENCE_S = 30.0  # in which torchrun ends the other ranks once the first has ended

# What each error of the system means for whoever started the command. Other errors of the system are no input's fault.
_MEANINGS = {
    errno.EACCES: "this user has no permission for it; change the permissions or name another path",
    errno.EPERM: "this user has no permission for it; change the permissions or name another path",
    errno.EROFS: "nothing can be written there; name another path",
    errno.ENOENT: "check the path; relative paths start in {cwd}",
    errno.ENOTDIR: "a part of this path is a file and no folder; name another path",
    errno.EISDIR: "this is a folder, and a file is due; name a file",
    errno.EEXIST: "it is in the way; remove it or name another path",
    errno.ENOTEMPTY: "it is in the way; remove it or name another path",
    errno.ENOSPC: "make room there or name another path",
    errno.EDQUOT: "make room there or name another path",
    errno.EFBIG: "allow larger files (ulimit -f) or name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "the links of this path lead in a circle; name another path",
}
# Faults of the machine, which another input would not mend. They keep their traceback, which ends with this.
_FAULTS = {
    errno.EMFILE: "raise the number of files that a process may open: ulimit -n 65536",
    errno.EIO: "the disk or its network cannot be read or written; look at it, or name another path",
    errno.ESTALE: "the file system was mounted anew; start again",
}


class Parser(argparse.ArgumentParser):
    """An argument parser of a command that runs on several ranks: a wrong line is an error like any other input's."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def path(text: str) -> Path:
    """A path of the command line. The shell leaves `~` alone after `=`, so it is expanded here."""
    return Path(text).expanduser()


def guarded(start: Callable[[], int]) -> int:
    """Exit status of `start()`, or UNUSABLE after the line on what it could not use; EX_IOERR where a last checkpoint
    or an export could not be written.

    SIMPLERL_DEBUG=1 shows the traceback instead.
    """
    # Megatron tells at import, on every rank, which optional packages are absent.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    try:
        return start()
    except NotSaved as error:
        last_words(f"error: {error}")
        return os.EX_IOERR
    except (ValueError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        if (text := in_words(error)) is None:
            if isinstance(error, OSError) and error.errno in _FAULTS:
                error.strerror = f"{error.strerror}; {_FAULTS[error.errno]}"
            raise
        last_words(text)
        return UNUSABLE


def in_words(error: ValueError | OSError) -> str | None:
    """What is wrong with the input and what would work; None where the error is no input's.

    The traceback of an error that is not of this package's words is kept in a file, which the words name.
    """
    if isinstance(error, ConfigErrors):
        return "\n".join(f"config: {problem}" for problem in error.problems)
    if isinstance(error, ValueError) or error.errno is None:
        return f"error: {error}{'' if _is_ours(error) else _where(error)}"
    if error.errno not in _MEANINGS:
        return None
    file = error.filename if error.filename2 is None else error.filename2  # the second one of a rename is the user's
    what = str(error.strerror) if file is None else f"{file}: {error.strerror}"
    return f"error: {what}; {_MEANINGS[error.errno].format(cwd=Path.cwd())}{_where(error)}"


def _where(error: Exception) -> str:
    """Where the error's traceback is, which is written to a temporary file."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="simplerl-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # no room for it
        return f" ({DEBUG}=1 shows where)"
    return f" ({DEBUG}=1 shows where, as does {file.name})"


def last_words(text: str) -> None:
    """Say why the command ends, on the first rank alone, after which it must end.

    Under torchrun every machine's first rank speaks: torchrun shows its own ranks. The others wait to be ended with it,
    for torchrun reports the rank that it sees end first. Where only another one has something to say, it says it then.
    """
    sys.stdout.flush()
    if file := os.environ.get(_ERROR_FILE):
        if os.environ.get("LOCAL_RANK") != "0":
            time.sleep(_PATIENCE_S)
            text = f"rank {os.environ.get('RANK')}: {text}"
        if _tell_torchrun(file, text):
            return
    if file or is_first_rank():
        print(text, file=sys.stderr, flush=True)


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell_torchrun(file: str, text: str) -> bool:
    """Write the file in which torchrun looks for the reason of a rank's end. Whether that worked."""
    message = {"message": text, "extraInfo": {"py_callstack": f"\n{text}", "timestamp": str(int(time.time()))}}
    try:
        Path(file).write_text(json.dumps({"message": message}))
    except OSError:
        return False
    return True


def _is_ours(error: Exception) -> bool:
    """Whether a line of this package raised it, and not a library's."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = os.path.dirname(nemo_simplerl.__file__)
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(package)
