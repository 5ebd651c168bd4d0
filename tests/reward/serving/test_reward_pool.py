import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_simplerl.reward.serving.cache import GradeCache, answer_key
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.reward.serving.worker_process import WorkerUnusable
from support.ranks import run_ranks

MISBEHAVING = (sys.executable, str(Path(__file__).with_name("misbehaving_worker.py")))
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pool():
    with RewardPool(num_workers=2, timeout_s=0.5, memory_limit_mb=512, command=MISBEHAVING) as pool:
        yield pool


def _outcomes(grades):
    return [(grade.verdict, grade.status) for grade in grades]


def _wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def _is_running(pid):
    """Whether the process runs. A zombie, which a container without an init leaves behind, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_math_grader_answers_in_the_order_of_the_items():
    items = [(str(k % 7), rf"thinking \boxed{{{k % 5}}}" if k % 11 else "none") for k in range(300)]
    with RewardPool(num_workers=2, timeout_s=5.0, memory_limit_mb=512) as pool:
        grades = pool.grade(items)
        assert pool.grade([]) == []
    expected = ["no_answer" if k % 11 == 0 else "correct" if k % 7 == k % 5 else "incorrect" for k in range(300)]
    assert [grade.verdict for grade in grades] == expected
    assert {grade.status for grade in grades} == {"ok"}
    assert all(0 <= grade.ms < 5000 for grade in grades)


@pytest.mark.parametrize("order", ["hang", "spin"])
def test_an_item_that_hangs_costs_its_deadline_and_only_its_own_grade(pool, order):
    before = set(pool.worker_pids())
    items = [
        ("1", "say 1"),
        ("1", order),
        ("1", "say 1"),
        ("1", order),
        ("2", "say 1"),
        *[("1", f"say {k} 1") for k in range(60)],
    ]
    start = time.monotonic()
    grades = pool.grade(items)
    elapsed = time.monotonic() - start

    good, late = ("correct", "ok"), ("incorrect", "timeout")
    assert _outcomes(grades) == [good, late, good, late, ("incorrect", "ok"), *[good] * 60]
    assert 500 <= grades[1].ms < 1500
    assert elapsed < 5.0
    assert len(before & set(pool.worker_pids())) < 2
    assert pool.grade([("1", "say 1")])[0].verdict == "correct"


def test_a_hung_worker_is_dead_after_its_deadline(pool):
    before = set(pool.worker_pids())
    pool.grade([("1", "spin"), ("1", "spin")])
    replaced = before - set(pool.worker_pids())
    assert replaced
    assert _wait_until(lambda: not any(_is_running(pid) for pid in replaced))


@pytest.mark.parametrize("order", ["raise", "abort", "nonsense", "allocate 4000"])
def test_an_item_that_breaks_its_worker_is_incorrect_and_counted_as_a_crash(pool, order):
    grades = pool.grade([("1", "say 1"), ("1", order), ("1", "say 1")])
    assert _outcomes(grades) == [("correct", "ok"), ("incorrect", "crash"), ("correct", "ok")]


def test_memory_below_the_limit_may_be_used(pool):
    assert _outcomes(pool.grade([("1", "allocate 64")])) == [("correct", "ok")]


def test_the_deadline_is_an_items_not_a_calls():
    with RewardPool(num_workers=1, timeout_s=1.0, memory_limit_mb=512, command=MISBEHAVING) as pool:
        # Eight items for one worker make round trips of two items, so that both slow ones share the first.
        grades = pool.grade([("1", "sleep 0.60"), ("1", "sleep 0.61"), *[("1", f"say {k} 1") for k in range(6)]])
    assert {grade.status for grade in grades} == {"ok"}
    assert grades[0].ms + grades[1].ms >= 1200


def test_stray_prints_and_reads_of_the_grader_leave_the_protocol_alone(pool):
    grades = pool.grade([("1", "print 1"), ("1", "read"), ("1", "print 1")])
    assert _outcomes(grades) == [("correct", "ok")] * 3


def test_a_worker_killed_from_outside_while_idle_costs_no_grade(pool):
    before = pool.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert _wait_until(lambda: not any(_is_running(pid) for pid in before))
    assert _outcomes(pool.grade([("1", f"say {k} 1") for k in range(20)])) == [("correct", "ok")] * 20
    assert not set(before) & set(pool.worker_pids())


def test_a_worker_killed_from_outside_at_work_costs_the_item_it_held():
    with RewardPool(num_workers=1, timeout_s=30.0, memory_limit_mb=512, command=MISBEHAVING) as pool:
        (pid,) = pool.worker_pids()
        timer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        timer.start()
        grades = pool.grade([("1", "hang"), ("1", "say 1")])
        timer.join()
    assert _outcomes(grades) == [("incorrect", "crash"), ("correct", "ok")]


def test_threads_that_share_a_pool_each_get_their_own_grades_in_order(pool):
    grades = {}

    def ask(name):
        items = [(str(k % 3), f"say {(k + name) % 3}" if k != 17 else "raise") for k in range(80)]
        grades[name] = [grade.verdict for grade in pool.grade(items)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for name in range(6):
        fits = name % 3 == 0
        assert grades[name] == ["correct" if fits and k != 17 else "incorrect" for k in range(80)]


def test_a_replaced_worker_outlives_the_thread_that_asked():
    with RewardPool(num_workers=1, timeout_s=5.0, memory_limit_mb=512, command=MISBEHAVING) as pool:
        (first,) = pool.worker_pids()
        thread = threading.Thread(target=pool.grade, args=([("1", "raise"), ("1", "say 1")],))
        thread.start()
        thread.join(timeout=30)
        (second,) = pool.worker_pids()
        assert second != first
        time.sleep(0.1)
        assert _outcomes(pool.grade([("1", "say 1")])) == [("correct", "ok")]
        assert pool.worker_pids() == [second]


def test_a_request_larger_than_a_pipe_holds_reaches_the_worker(pool):
    padding = "x" * 3_000_000
    assert _outcomes(pool.grade([("1", f"say {padding}1"), ("1", f"say {padding}2\ud800")])) == [
        ("correct", "ok"),
        ("incorrect", "ok"),
    ]


def test_a_worker_that_never_reads_runs_into_the_deadline():
    deaf = "import sys, time; from nemo_simplerl.reward.serving.worker import encode_frame; "
    deaf += "sys.stdout.buffer.write(encode_frame({'ready': 1})); sys.stdout.flush(); time.sleep(600)"
    with RewardPool(1, timeout_s=0.3, memory_limit_mb=512, command=(sys.executable, "-c", deaf)) as pool:
        (grade,) = pool.grade([("1", "x" * 1_000_000)])
    assert (grade.verdict, grade.status) == ("incorrect", "timeout")


def test_closing_kills_the_workers_and_frees_whoever_waits():
    pool = RewardPool(num_workers=2, timeout_s=60.0, memory_limit_mb=512, command=MISBEHAVING)
    pids = pool.worker_pids()
    errors = []

    def ask():
        try:
            pool.grade([("1", f"hang {k}") for k in range(8)])
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    pool.close()
    thread.join(timeout=5)
    assert errors == ["the reward pool was closed before the grading ended"]
    assert len(pids) == 2 and not any(_is_running(pid) for pid in pids)
    pool.close()
    with pytest.raises(RuntimeError, match="the reward pool is closed"):
        pool.grade([("1", "say 1")])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a hanging child with its parent")
def test_workers_die_with_a_parent_that_is_killed_even_when_they_hang():
    program = (
        "import threading, time\n"
        "from nemo_simplerl.reward.serving.pool import RewardPool\n"
        f"pool = RewardPool(2, 600.0, 512, {MISBEHAVING!r})\n"
        "threading.Thread(target=pool.grade, args=([('1', 'hang'), ('1', 'hang 2')],), daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "print(*pool.worker_pids(), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(_is_running(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _wait_until(lambda: not any(_is_running(pid) for pid in pids))


def test_a_process_that_forgets_to_close_its_pool_still_ends():
    program = (
        "from nemo_simplerl.reward.serving.pool import RewardPool\n"
        "pool = RewardPool(1, 5.0, 512)\n"
        "print(pool.grade([('5', r'\\boxed{5}')])[0].verdict, pool.worker_pids()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    verdict, pid = done.stdout.split()
    assert (verdict, done.returncode) == ("correct", 0), done.stderr
    assert _wait_until(lambda: not _is_running(int(pid)))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), "did not start.*code 3"),
        ((sys.executable, "-c", "print('hello, I am not a worker')"), "did not start"),
        (("/no/such/program",), "/no/such/program"),
    ],
)
def test_a_worker_that_cannot_start_is_an_error_at_once(command, says):
    with pytest.raises((RuntimeError, OSError), match=says):
        RewardPool(num_workers=2, timeout_s=1.0, memory_limit_mb=512, command=command)


STARTS = """
import sys, time
from nemo_simplerl.reward.serving.worker import encode_frame, read_frame
starts = open(sys.argv[1], "a+"); starts.write("x"); starts.flush(); starts.seek(0)
if len(starts.read()) > int(sys.argv[2]):
    raise SystemExit(3)
sys.stdout.buffer.write(encode_frame({"ready": 1})); sys.stdout.flush()
read_frame(sys.stdin.buffer)
"""


@pytest.mark.parametrize("good", [0, 1])
def test_a_worker_that_does_not_start_is_tried_three_times_and_then_no_more(tmp_path, good):
    starts = tmp_path / "starts"
    command = (sys.executable, "-c", STARTS, str(starts), str(good))
    told = "did not start 3 times in a row. The last: (?s:.*) ended with code 3"
    with pytest.raises(RuntimeError, match=told) as raised, RewardPool(1, 1.0, 512, command) as pool:
        for k in range(5):  # the worker that started ends at its first item
            pool.grade([("1", f"say {k}")])
    assert len(starts.read_text()) == good + 3
    if good:
        assert pool.broken == str(raised.value)
        with pytest.raises(RuntimeError, match="is closed"):
            pool.grade([("1", "say 1")])


def test_a_worker_that_says_why_it_cannot_grade_is_not_tried_again(tmp_path):
    worker = (
        "import sys; from nemo_simplerl.reward.serving.worker import load_and_serve\n"
        f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n"
        "def load(): import no_such_module\n"
        "load_and_serve(load, int(sys.argv[1]), int(sys.argv[2]))"
    )
    with pytest.raises(WorkerUnusable, match="No module named 'no_such_module'"):
        RewardPool(1, 1.0, 512, (sys.executable, "-c", worker))
    assert (tmp_path / "starts").read_text() == "x"


@pytest.mark.parametrize("arguments", [(0, 1.0, 512), (1, 0.0, 512), (1, 1.0, 0)])
def test_a_pool_that_could_not_work_is_refused(arguments):
    with pytest.raises(ValueError, match="a reward pool needs num_workers >= 1"):
        RewardPool(*arguments)


def test_an_answer_that_the_grader_cannot_read_is_told_apart(pool):
    grades = pool.grade([("1", "garble 2"), ("1", "garble 1"), ("1", "say 2")])
    assert _outcomes(grades) == [("incorrect", "parse_failed"), ("correct", "parse_failed"), ("incorrect", "ok")]


def test_the_same_answer_to_the_same_problem_is_graded_once(pool):
    (first, *others) = pool.grade([("1", "sleep 0.1")] * 6 + [("2", "sleep 0.1")])
    assert {grade.ms for grade in others[:5]} == {first.ms} and others[5].ms != first.ms
    assert pool.grade([("1", "sleep 0.1")]) == [first]


def test_an_item_that_timed_out_is_tried_again_when_it_returns(pool):
    (first,) = pool.grade([("1", "raise")])
    (second,) = pool.grade([("1", "raise")])
    assert (first.status, second.status) == ("crash", "crash") and first.ms != second.ms


def test_the_boxed_content_and_the_gold_decide_what_counts_as_the_same():
    assert answer_key("1", r"so \boxed{2}") == answer_key("1", r"thus \boxed{3}, no: \boxed{2}.")
    different = [("1", r"\boxed{2}"), ("2", r"\boxed{2}"), ("1", "2"), ("12", "3"), ("1", "23"), ("1", "\ud800")]
    assert len({answer_key(*item) for item in different}) == len(different)


def test_a_full_cache_forgets_what_was_not_asked_for_longest():
    cache: GradeCache[int] = GradeCache(max_entries=2)
    cache.store([(b"a", 1), (b"b", 2)])
    assert cache.lookup([b"a"]) == {b"a": 1}
    cache.store([(b"c", 3)])
    assert cache.lookup([b"a", b"b", b"c"]) == {b"a": 1, b"c": 3}


def test_memory_of_the_cache_does_not_grow_with_the_responses():
    tracemalloc.start()
    cache: GradeCache[int] = GradeCache(max_entries=1000)
    cache.store((answer_key("1", f"{k}" + "x" * 10_000), k) for k in range(3000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 1000 and held < 500_000


def test_grading_in_an_event_loop_leaves_the_loop_free_and_withdraws_what_is_cancelled():
    async def ask(pool):
        started = time.monotonic()
        slow = asyncio.create_task(pool.grade_async([("1", f"sleep 0.3{k}") for k in range(8)]))
        await asyncio.sleep(0.1)
        assert time.monotonic() - started < 0.3
        slow.cancel()
        assert await asyncio.gather(slow, return_exceptions=True) != []
        grades = await pool.grade_async([("1", "say 1"), ("2", "say 1")])
        assert time.monotonic() - started < 1.0  # one item was being graded, seven would take two seconds
        return grades

    with RewardPool(num_workers=1, timeout_s=5.0, memory_limit_mb=512, command=MISBEHAVING) as pool:
        assert _outcomes(asyncio.run(ask(pool))) == [("correct", "ok"), ("incorrect", "ok")]


def _flood(how, num_items):
    """The outcomes of items of which one in 25 hangs, the number of live workers afterwards, and the seconds taken."""
    items = [(str(k % 3), f"hang {k}" if k % 25 == 7 else f"say {k} {k % 4}") for k in range(num_items)]
    with RewardPool(num_workers=8, timeout_s=0.5, memory_limit_mb=512, command=MISBEHAVING) as pool:
        start = time.monotonic()
        if how == "asyncio":
            grades = asyncio.run(pool.grade_async(items))
        else:
            with ThreadPoolExecutor(1) as thread:
                grades = thread.submit(pool.grade, items).result()
        seconds = time.monotonic() - start
        return _outcomes(grades), len(pool.worker_pids()), seconds


def _assert_only_the_hanging_are_late(outcomes, num_workers, seconds):
    for k, outcome in enumerate(outcomes):
        expected = ("correct" if k % 3 == k % 4 else "incorrect", "ok")
        assert outcome == (("incorrect", "timeout") if k % 25 == 7 else expected), k
    assert num_workers >= 7  # the last worker killed is replaced when there is work again
    assert seconds < 60  # 80 deadlines of half a second over 8 workers take 5 seconds, and new workers theirs


@pytest.mark.slow
@pytest.mark.parametrize(("how", "num_items"), [("thread", 2000), ("asyncio", 1000)])
def test_hanging_answers_among_thousands_cost_no_other_its_grade(how, num_items):
    _assert_only_the_hanging_are_late(*_flood(how, num_items))


@pytest.mark.slow
def test_hanging_answers_cost_no_other_its_grade_on_two_ranks():
    for answer in run_ranks(_flood, 2, "thread", 500):
        _assert_only_the_hanging_are_late(*answer)


def test_a_worker_is_ready_within_a_fraction_of_a_second_of_processor_time():
    before = os.times()
    with RewardPool(num_workers=1, timeout_s=5.0, memory_limit_mb=512) as pool:
        pool.grade([("5", r"\boxed{5}")])
    after = os.times()
    spent = sum(after[:4]) - sum(before[:4])
    assert spent < 0.5, f"{spent:.2f} s"
