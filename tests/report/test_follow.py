"""The page that is served during a run."""

import functools
import http.client
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from nemo_simplerl.report.follow import Follower
from support.run_on_disk import write_run


@pytest.fixture
def served(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("1\n")
    follower = Follower([file, tmp_path / "summary.json"], lambda version: f"{version}: {file.read_text()}")
    yield file, follower
    follower.close()


def get(follower, path="", **headers):
    request = urllib.request.Request(follower.url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_the_page_is_made_anew_when_the_metrics_grow(served):
    file, follower = served
    before, version = get(follower), get(follower, "version")
    assert before == f"{version}: 1\n"
    assert not follower.refresh()
    assert get(follower, "version") == version
    with file.open("a") as metrics:
        metrics.write("2\n")
    assert follower.refresh()
    assert get(follower, "version") != version
    assert get(follower) == f"{get(follower, 'version')}: 1\n2\n"


def test_a_page_that_cannot_be_made_leaves_the_one_before(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("1\n")

    def build(version):
        if "bad" in file.read_text():
            raise ValueError("damaged")
        return "whole"

    follower = Follower([file], build)
    file.write_text("bad bad\n")
    with pytest.raises(ValueError, match="damaged"):
        follower.refresh()
    assert get(follower) == "whole"
    follower.close()


def test_it_is_served_to_this_machine_and_under_its_own_name_alone(served):
    _, follower = served
    assert follower.url.startswith("http://127.0.0.1:")
    for path, headers, status in (
        ("metrics.jsonl", {}, 404),
        ("../../etc/passwd", {}, 404),
        ("", {"Host": "elsewhere.test"}, 403),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(follower, path, **headers)
        assert refused.value.code == status


def test_nothing_answers_after_the_end(tmp_path):
    follower = Follower([], lambda version: "page")
    port = int(follower.url.rstrip("/").rpartition(":")[2])
    follower.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=30).connect()


def test_the_command_serves_a_run_until_it_is_interrupted(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    command = [sys.executable, "-m", "nemo_simplerl", "report", str(run), "--follow"]
    # A shell has what it puts in the background ignore SIGINT, tests too, and with them what they start.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
        try:
            url = process.stdout.readline().split()[0]
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert "<title>run</title>" in answer.read().decode()
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert not (run / "report.html").exists()
