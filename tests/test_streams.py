"""Standard output that nobody reads, that is closed, or that is a file on a full disk."""

import errno
import io
import os
import subprocess
import sys

import pytest

from nemo_simplerl.streams import PatientStream, patient_streams

SAYS = """
import os, sys
from nemo_simplerl.streams import patient_streams
with patient_streams(lambda: print("lost", file=sys.stderr)):
    for number in range(20000):
        print("a line that nobody reads")
    opened = os.open(os.devnull, os.O_RDONLY)
    print(opened > 2, file=sys.stderr)
    open(sys.argv[1], "w").write("the end")
"""


@pytest.mark.parametrize(
    "end", ["| head -1", ">&-", "2>&- | head -1", ">&- 2>&- <&-", "> /dev/full", "> /dev/full 2>&1"]
)
def test_a_command_comes_to_its_end_without_a_word_about_it(tmp_path, end):
    done = tmp_path / "done"
    command = f'{{ "{sys.executable}" -c "$0" "{done}"; echo $? > "{tmp_path}/status"; }} {end}'
    found = subprocess.run(["bash", "-c", command, SAYS], capture_output=True, text=True, timeout=60)
    assert done.read_text() == "the end", found
    assert (tmp_path / "status").read_text() == "0\n", found
    assert "Traceback" not in found.stderr and "BrokenPipe" not in found.stderr
    if "2>" not in end:
        assert found.stderr.splitlines() == (["lost"] if "head" in end else []) + ["True"]


def test_the_streams_are_put_back_and_text_comes_through(capsys):
    before = sys.stdout
    with patient_streams():
        print("to the screen")
        sys.stderr.writelines(["one ", "two"])
        assert not sys.stdout.isatty()
    assert sys.stdout is before
    assert capsys.readouterr() == ("to the screen\n", "one two")


@pytest.mark.parametrize(
    ("number", "is_gone"),
    [(errno.EPIPE, True), (errno.EIO, True), (errno.EAGAIN, False), (errno.EFBIG, False)],
)
def test_a_stream_that_refuses_some_text_is_used_again_unless_its_reader_is_gone(tmp_path, number, is_gone):
    class Refusing(io.FileIO):
        refuses = True

        def write(self, content):
            if self.refuses:
                raise OSError(number, os.strerror(number))
            return super().write(content)

    lost: list[bool] = []
    raw = Refusing(tmp_path / "out", "w")
    stream = PatientStream(io.TextIOWrapper(raw, write_through=True), lambda: lost.append(True))
    stream.write("left out")
    raw.refuses = False
    stream.write("told")
    stream.flush()
    assert bool(lost) == is_gone
    assert ((tmp_path / "out").read_text() == "told") != is_gone


def test_a_command_whose_output_finds_no_room_says_so():
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-m", "nemo_simplerl", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert (found.returncode, found.stderr) == (
        os.EX_IOERR,
        b"error: standard output cannot be written: No space left on device\n",
    )


def test_the_command_line_goes_on_where_its_reader_is_gone(tmp_path):
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run([sys.executable, "-m", "nemo_simplerl", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (found.returncode, found.stderr) == (0, b"")
