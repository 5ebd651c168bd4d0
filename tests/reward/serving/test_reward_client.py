"""The client of the reward server: failover, retries, and an error in words when nobody answers."""

import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nemo_simplerl.reward.serving.client import RewardClient
from nemo_simplerl.reward.serving.pool import RewardPool
from support.servers import MISBEHAVING_SERVER, reward_server

TOKEN = "a-token-of-the-tests"
ITEMS = [(str(k % 7), rf"so \boxed{{{k % 5}}}" if k % 11 else "none \ud800") for k in range(300)]


@pytest.fixture(scope="module")
def url():
    with reward_server(token=TOKEN) as server:
        yield server.url


@pytest.fixture
def dead_url():
    """An address that refuses connections."""
    with socket.socket() as taken:  # bound and not listening, so that no other process gets the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def scripted(*answers):
    """Run a server that returns the scripted (status, headers, body) in turn, the last for ever; yields URL and log.

    A body of None stands for correct grades. The log has the time of each request and the number of its items.
    """
    log = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            status, headers, body = answers[min(len(log), len(answers) - 1)]
            log.append((time.monotonic(), len(items)))
            if body is None:
                results = [{"id": item["id"], "verdict": "correct", "status": "ok", "ms": 1.0} for item in items]
                body = json.dumps({"results": results}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()


GOOD = (200, {}, None)


def test_grades_are_those_of_the_pool_in_the_order_of_the_items(url):
    with RewardPool(1, timeout_s=10.0, memory_limit_mb=512) as pool:
        expected = [(grade.verdict, grade.status) for grade in pool.grade(ITEMS)]
    with RewardClient(url + "/", token=TOKEN, batch_size=7) as client:
        assert client.check() == []
        assert [(grade.verdict, grade.status) for grade in client.grade(ITEMS)] == expected
        assert client.grade([]) == []


def test_threads_share_a_client(url):
    answers = {}
    with RewardClient(url, token=TOKEN, batch_size=10) as client:

        def ask(name):
            items = [(str(k % 3), rf"\boxed{{{(k + name) % 3}}}") for k in range(60)]
            answers[name] = {grade.verdict for grade in client.grade(items)}

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert answers == {name: {"incorrect" if name % 3 else "correct"} for name in range(6)}


def test_servers_take_turns_and_batches_are_bounded():
    with (
        scripted(GOOD) as (one, first),
        scripted(GOOD) as (other, second),
        RewardClient([one, other], batch_size=10, num_connections=1) as client,
    ):
        assert len(client.grade(ITEMS[:60])) == 60
        client.grade([("1", "x" * 900_000)] * 2)
    assert [size for _, size in first] == [10, 10, 10, 1] and [size for _, size in second] == [10, 10, 10, 1]


def test_a_dead_server_among_several_is_passed_over_and_then_asked_last(dead_url):
    with scripted(GOOD) as (alive, log), RewardClient([dead_url, alive], batch_size=1, num_connections=1) as client:
        (problem,) = client.check()
        assert dead_url in problem and "refused" in problem
        start = time.monotonic()
        assert {grade.verdict for grade in client.grade(ITEMS[:20])} == {"correct"}
        assert time.monotonic() - start < 2
    assert len(log) == 21  # the check is a request too


def test_when_nobody_answers_the_error_names_every_server_the_reason_and_the_remedy(dead_url):
    with (
        scripted((500, {}, b"out of order")) as (broken, log),
        RewardClient([dead_url, broken], give_up_s=1.5) as client,
    ):
        start = time.monotonic()
        with pytest.raises(RuntimeError) as raised:
            client.grade(ITEMS)
        seconds = time.monotonic() - start
    for told in (dead_url, "refused", broken, "status 500, out of order", "1.5 s", "reward.url=null"):
        assert told in str(raised.value)
    assert 0.5 < seconds < 3
    assert 16 <= len(log) <= 60  # 8 connections, growing pauses


def test_a_server_that_takes_connections_and_is_silent_counts_as_dead():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with (
            RewardClient(silent_url, timeout_s=0.5, give_up_s=1.5) as client,
            pytest.raises(RuntimeError, match=f"{silent_url} .*timed out"),
        ):
            client.grade(ITEMS)
        assert time.monotonic() - start < 3


def test_a_busy_server_is_asked_again_when_it_said_so():
    busy = (503, {"Retry-After": 1}, b"busy")
    with scripted(busy, busy, GOOD) as (url, log), RewardClient(url) as client:
        assert len(client.grade(ITEMS[:5])) == 5
        assert [round(log[k + 1][0] - log[k][0], 1) >= 1.0 for k in range(2)] == [True, True]
    with scripted((503, {"Retry-After": 60}, b"busy")) as (url, log), RewardClient(url, give_up_s=2) as client:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="busy"):
            client.grade(ITEMS[:5])
        assert time.monotonic() - start < 1 and len(log) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"results": []}', b'{"results": [{"id": 0, "verdict": "good"}]}'])
def test_an_answer_that_is_no_grades_is_never_taken_for_one(body):
    with (
        scripted((200, {}, body)) as (url, _),
        RewardClient(url, give_up_s=0.3) as client,
        pytest.raises(RuntimeError, match="it is no reward server|it was asked for 5 grades"),
    ):
        client.grade(ITEMS[:5])


def test_a_wrong_token_is_told_at_once_and_nothing_is_tried_again(url):
    with RewardClient(url, token="another") as client:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=rf"{url} refuses .* 401.* Set SIMPLERL_REWARD_TOKEN"):
            client.grade(ITEMS)
        assert time.monotonic() - start < 3
        with pytest.raises(ValueError, match="SIMPLERL_REWARD_TOKEN") as caught:
            client.check()
    assert ".." not in str(caught.value) and "simplerl reward-server" not in str(caught.value)


def test_the_check_names_the_address_where_nobody_answers(dead_url):
    with (
        RewardClient([dead_url, "http://no.such.host.invalid:1"]) as client,
        pytest.raises(ValueError, match=rf"at {dead_url}.*at http://no.such.host.invalid:1.*reward-server"),
    ):
        client.check()


def test_a_server_that_works_longer_than_silence_is_borne_is_waited_for():
    with (
        reward_server(1000, 0.2, command=MISBEHAVING_SERVER) as server,
        RewardClient(server.url, timeout_s=0.8, give_up_s=1.2) as client,
    ):
        assert [grade.verdict for grade in client.grade([("1", "sleep 2.01")])] == ["correct"]


def test_patience_starts_anew_with_a_server_that_was_at_work_when_it_died():
    def die_then_answer():
        first, _ = listener.accept()
        with first:
            first.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n ")
            time.sleep(1.2)
        second, _ = listener.accept()
        with second:
            body = b'{"results": [{"id": 0, "verdict": "correct", "status": "ok", "ms": 1.0}]}'
            second.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            second.recv(100_000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=die_then_answer, daemon=True).start()
        with RewardClient(f"http://127.0.0.1:{listener.getsockname()[1]}", give_up_s=1.0) as client:
            assert [grade.verdict for grade in client.grade([("1", "x")])] == ["correct"]


def test_a_server_that_dies_at_every_answer_is_given_up():
    cut = (200, {"Content-Length": 99}, b" ")
    with scripted(cut) as (url, log), RewardClient(url, timeout_s=0.2, give_up_s=0.4) as client:
        with pytest.raises(RuntimeError, match="it stopped amid its answer"):
            client.grade([("1", "x")])
        assert len(log) > 1


def test_a_server_killed_at_work_and_started_again_costs_no_grade():
    items = [("1", f"sleep 0.0{k}1") for k in range(1, 8)] * 4 + [("2", f"say {k}") for k in range(60)]
    grades = []
    with (
        reward_server(1000, 0.1, command=MISBEHAVING_SERVER) as server,
        RewardClient(server.url, batch_size=2) as client,
    ):
        thread = threading.Thread(target=lambda: grades.extend(client.grade(items)))
        thread.start()
        time.sleep(0.05)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        time.sleep(0.5)
        with reward_server(1000, 0.1, command=MISBEHAVING_SERVER, port=server.port):
            thread.join(timeout=30)
    assert [(grade.verdict, grade.status) for grade in grades] == [
        ("correct" if response.endswith(gold) else "incorrect", "ok") for gold, response in items
    ]


def test_closing_frees_whoever_waits(dead_url):
    client = RewardClient(dead_url)
    errors = []

    def ask():
        try:
            client.grade(ITEMS[:1])
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    client.close()
    thread.join(timeout=10)
    assert errors == ["the reward client was closed before the grading ended"]
    with pytest.raises(RuntimeError, match="the reward client is closed"):
        client.grade([])


@pytest.mark.parametrize("change", [{"urls": []}, {"timeout_s": 0}, {"batch_size": 0}, {"give_up_s": -1}])
def test_a_client_that_could_not_work_is_refused(change):
    with pytest.raises(ValueError, match="a reward client needs"):
        RewardClient(**({"urls": "http://127.0.0.1:1"} | change))
