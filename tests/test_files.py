"""Files appear whole or not at all; a .jsonl file survives a crash in the middle of a line."""

import errno
import os
import resource
import signal
import stat
import threading

import pytest

from nemo_simplerl.files import Unessential, append_jsonl, atomic_write, read_jsonl, synced_beside, truncate_jsonl


def test_atomic_write_replaces_text_and_bytes_and_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "new" / "folder" / "config.yaml"
    atomic_write(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["config.yaml"]


def test_a_write_that_fails_leaves_the_old_content_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    atomic_write(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left.*summary.json"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_file_is_on_disk_before_it_takes_the_name_and_the_name_is_on_disk_at_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append("sync " + ("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"))
        fsync(descriptor)

    def watched_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    atomic_write(tmp_path / "manifest.json", "{}")
    assert events == ["sync file", "rename", "sync folder"]


def test_what_the_disk_refuses_beside_the_writing_is_raised_at_its_end(tmp_path, monkeypatch):
    answered = threading.Event()

    def refuse(descriptor):
        answered.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(OSError, match="No space left on device"),
        synced_beside(file),
    ):
        assert answered.wait(10), "nothing was brought to the disk while the file was written"


def test_appended_rows_come_back_in_order_with_floats_to_the_last_bit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "a": 0.1 + 0.2}, {"step": 2, "a": 1e-300, "text": "π\n"}]
    for row in rows:
        append_jsonl(path, row)
    assert read_jsonl(path) == rows
    assert path.read_text(encoding="utf-8").splitlines()[0] == '{"step": 1, "a": 0.30000000000000004}'


def test_a_line_that_finds_no_room_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))  # bytes: room for a part of the line
    try:
        with pytest.raises(OSError, match="File too large.*metrics.jsonl"):
            append_jsonl(path, {"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == '{"step": 1}\n'


def test_a_file_that_the_disk_refuses_is_told_once_until_it_is_written_again(tmp_path, caplog):
    caplog.set_level("INFO", "nemo_simplerl")
    unessential = Unessential()
    for is_full in (True, True, False, True):
        with unessential.write("rollouts/", tmp_path / "run"):
            if is_full:
                raise OSError(28, "No space left on device")
    told = f"rollouts/ was NOT saved: No space left on device. {tmp_path}/run has "
    first, again, second = caplog.messages
    assert first.startswith(told) and first.endswith(" GB free; make room. The run goes on.")
    assert again == "rollouts/ is saved again" and second.startswith(told)


def test_append_refuses_what_json_does_not_have_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_jsonl(tmp_path / "metrics.jsonl", {"step": 1, "loss": float("nan")})
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_truncate_keeps_what_it_is_told_to_and_drops_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert truncate_jsonl(path, lambda row: row["step"] <= 2) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    append_jsonl(path, {"step": 3})
    assert path.read_text().endswith('{"step": 2}\n{"step": 3}\n')


def test_dropping_the_last_lines_takes_no_room_and_dropping_others_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": "\u00e9"}\n{"step": 3}\n', encoding="utf-8")
    inode = path.stat().st_ino
    truncate_jsonl(path, lambda row: row["step"] != 3)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": "\u00e9"}\n' and path.stat().st_ino == inode
    truncate_jsonl(path, lambda row: row["step"] != 1)
    assert path.read_text(encoding="utf-8") == '{"step": "\u00e9"}\n'


def test_truncate_that_keeps_every_line_still_drops_the_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert truncate_jsonl(path, lambda row: True) == [{"step": 1}]
    assert path.read_text() == '{"step": 1}\n'


def test_truncate_of_a_missing_file_makes_none(tmp_path):
    assert truncate_jsonl(tmp_path / "metrics.jsonl", lambda row: True) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("line", ["not json", "[1, 2]", ""])
def test_a_whole_line_that_is_no_object_is_an_error_that_names_it_and_cuts_nothing(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not"):
        truncate_jsonl(path, lambda row: False)
    assert path.read_text() == text
