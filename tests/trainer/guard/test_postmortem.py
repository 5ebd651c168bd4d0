"""The watchdog's culprits and limits on heartbeats written by hand, and process states on real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from nemo_simplerl.parallel.waits import Waits
from nemo_simplerl.trainer.guard import processes
from nemo_simplerl.trainer.guard.heartbeats import Failure, Heartbeat, decode_heartbeat, encode_heartbeat
from nemo_simplerl.trainer.guard.postmortem import culprits, named, report, stacks
from nemo_simplerl.trainer.guard.processes import Process
from nemo_simplerl.trainer.guard.watchdog import PhaseLimits

LIMITS = PhaseLimits(dead_after_s=30.0, unchanged_s=100.0, by_name={"rollout": 50.0})


def beat(**changes) -> Heartbeat:
    values = {
        "count": 3,
        "process": Process(7, 9),
        "machine": "m",
        "host": "node",
        "status": "running",
        "waits": [("rollout", 12.0)],
    }
    return Heartbeat(**values | {"unchanged_s": 2.0} | changes)


def failed(order: int, text: str) -> Heartbeat:
    return beat(status="failed", failure=Failure(order, text, "values", f"Traceback\n{text}"))


def test_the_dead_come_before_who_failed_and_who_failed_before_who_waits():
    beats = {0: beat(in_collective=True), 1: failed(2, "reset by peer"), 2: failed(1, "out of memory"), 3: beat()}
    assert [culprit.rank for culprit in culprits(beats, {3: "is dead"})] == [3]
    assert [(culprit.rank, culprit.why) for culprit in culprits(beats, {})] == [(2, "failed first: out of memory")]
    del beats[1], beats[2]
    (culprit,) = culprits(beats, {})
    assert culprit.rank == 3 and "rank 0 waits for it in a collective" in culprit.why


def test_who_gave_up_waiting_is_not_to_blame_for_whom_it_waited():
    text = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms"
    beats = {0: failed(1, text), 1: beat(), 2: beat(in_collective=True)}
    (culprit,) = culprits(beats, {})
    assert (culprit.rank, culprit.why) == (
        1,
        "is at rollout for 12 s, and rank 0, 2 gave up waiting for it in a collective",
    )
    (culprit,) = culprits({0: failed(1, text), 1: failed(2, "reset")}, {})
    assert culprit.rank == 0  # nobody is left that is at work
    assert [culprit.rank for culprit in culprits({**beats, 1: failed(2, "boom")}, {})] == [0]


def test_a_role_at_work_is_blamed_past_its_limits_alone_and_by_its_name():
    beats = {
        0: beat(roles=["actor"], waits=[("exchange.rows", 60.0)], in_collective=True),
        1: beat(roles=["critic"], waits=[("values", 60.0)]),
        2: beat(roles=["engine"]),
    }
    assert culprits(beats, {}) == []
    (culprit,) = culprits(beats, {}, lambda beat: beat.waits[0][0] == "values")
    assert culprit.rank == 1
    assert culprit.why == "is at values for 60 s, and rank 0 (actor) waits for it in a collective"
    assert named(1, beats[1]) == "rank 1 (critic) (pid 7 on node)"
    assert "rank 2 (engine), pid 7 on node: rollout for 12 s" in report("", beats, [], every_thread=False)


def test_a_wait_for_another_role_is_limited_by_its_own_name_and_where_every_rank_waits():
    waits = beat(waits=[("rollout", 300.0), ("gather.announce", 300.0)], unchanged_s=300.0)
    assert waits.waits_for_others and not beat(waits=[("gather.rows", 9.0), ("rollout", 1.0)]).waits_for_others
    assert "rollout for 300 s" in LIMITS.exceeded(waits)
    assert LIMITS.exceeded_by_wait(waits, 0.0) is None
    assert LIMITS.exceeded_by_wait(beat(waits=[("warm_start", 9e6)], unchanged_s=9e6), 0.0) is None
    assert "as every rank waits; trainer.distributed_timeout_s=100" in LIMITS.exceeded_by_wait(waits, 101.0)
    limits = replace(LIMITS, by_name={"gather.announce": 200.0})
    assert "limits_s.gather.announce=200" in limits.exceeded_by_wait(waits, 0.0)


def test_nobody_is_blamed_where_all_do_the_same():
    assert culprits({0: beat(), 1: beat()}, {}) == []
    assert culprits({0: beat(in_collective=True), 1: beat(in_collective=True)}, {}) == []


def test_the_culprit_opens_the_report_and_each_rank_tells_where_it_was():
    beats = {0: beat(in_collective=True, stacks={"MainThread": ["a.py:1 in f: g()"]}), 1: failed(1, "boom")}
    text = report("alarm of rank 0.", beats, culprits(beats, {}), every_thread=False)
    lines = text.splitlines()
    assert lines[2] == "  culprit: rank 1 (pid 7 on node) failed first: boom"
    assert text.index("rank 1, pid 7 on node: failed in values") < text.index("rank 0, pid 7 on node: rollout for 12 s")
    assert "    a.py:1 in f: g()" in lines


def test_a_heartbeat_is_the_same_after_its_journey():
    sent = beat(failure=Failure(1, "boom", "values", "trace"), stacks={"MainThread": ["line"]}, alarm="alarm")
    assert decode_heartbeat(encode_heartbeat(sent)) == sent


def test_a_named_wait_has_its_own_limit_and_any_other_that_of_no_change():
    assert LIMITS.exceeded(beat(waits=[("rollout", 49.0), ("engine.generate", 49.0)])) is None
    assert "rollout for 51 s" in LIMITS.exceeded(beat(waits=[("rollout", 51.0), ("engine.generate", 1.0)]))
    assert LIMITS.exceeded(beat(waits=[("reward", 400.0)], unchanged_s=99.0)) is None
    assert "reward for 400 s" in LIMITS.exceeded(beat(waits=[("reward", 400.0)], unchanged_s=101.0))
    assert "outside the phases for 101 s" in LIMITS.exceeded(beat(waits=[], unchanged_s=101.0))


def test_waits_are_told_innermost_last_and_an_error_where_it_came_up():
    now = [0.0]
    waits = Waits(lambda: now[0])
    with waits("rollout"):
        now[0] = 5.0
        with waits("engine.generate"):
            assert [(wait.name, wait.since) for wait in waits.open] == [("rollout", 0.0), ("engine.generate", 5.0)]
            assert waits.in_words() == "rollout > engine.generate"
        now[0] = 6.0
    assert waits.open == () and waits.changed == 6.0
    with pytest.raises(KeyError), waits("reward"), waits("reward.grade"):
        raise KeyError
    assert waits.raised_in == "reward > reward.grade"


def test_stacks_show_every_thread_by_name():
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="a writer")
    thread.start()
    found, in_collective = stacks()
    go.set()
    thread.join()
    assert "test_stacks_show_every_thread_by_name" in "".join(found["MainThread"])
    assert any(name.startswith("a writer") for name in found) and not in_collective


@contextmanager
def parent_and_child():
    """A process that has started another; both sleep."""
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        yield parent, child
    finally:
        for pid in (parent.pid, child):
            if parent.poll() is None or pid == child:
                subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL)
        parent.wait()
        parent.stdout.close()


def _known(pid: int) -> Process:
    return Process(pid, int(processes._stat(pid)[19]))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_process_is_seen_running_stopped_and_ended_with_its_children():
    with parent_and_child() as (parent, child):
        process = _known(parent.pid)
        assert processes.state(process) == "running"
        assert [found.pid for found in processes.descendants(process)] == [child]
        os.kill(parent.pid, signal.SIGSTOP)
        while processes.state(process) == "running":
            time.sleep(0.01)
        assert processes.state(process) == "stopped by a signal"
        assert processes.state(Process(parent.pid, process.started + 1)) == "ended"  # an id used again
        processes.kill(Process(parent.pid, process.started + 1))
        assert processes.state(process) == "stopped by a signal"
        processes.kill(process)
        parent.wait()
        assert processes.state(process) == "ended"
