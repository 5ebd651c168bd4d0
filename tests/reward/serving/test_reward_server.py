"""The reward server over real HTTP on the loopback, in a process of its own."""

import asyncio
import base64
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from nemo_simplerl.reward.serving import server as server_module
from support.servers import MISBEHAVING_SERVER, ROOT, reward_server

TOKEN = "a-token-of-the-tests"
ITEM = {"id": "a", "gold": "2", "response": r"\boxed{2}"}


@pytest.fixture(scope="module")
def server():
    with reward_server("--max-items", 100, token=TOKEN) as server:
        yield server


def ask(server, body, *, method="POST", path="/grade", token: str | None = TOKEN):
    """The status, headers and body of one request; a `body` of bytes is sent as it is, any other as JSON."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def assert_alive(server):
    status, _, body = ask(server, {"items": [ITEM]})
    assert (status, json.loads(body)["results"][0]["verdict"]) == (200, "correct")


def test_results_come_in_order_with_verdict_reward_status_and_time(server):
    items = [
        ITEM,
        {"id": 7, "gold": "2", "response": r"\boxed{3}"},
        {"id": "\ud800", "gold": "2", "response": "two \ud800"},
        {"id": "a", "gold": "1/2", "response": r"\boxed{0.5}"},
    ]
    status, _, body = ask(server, {"items": items})
    results = json.loads(body)["results"]
    assert status == 200
    assert [(r["id"], r["verdict"], r["reward"], r["status"]) for r in results] == [
        ("a", "correct", 1.0, "ok"),
        (7, "incorrect", -0.5, "ok"),
        ("\ud800", "no_answer", -1.0, "ok"),
        ("a", "correct", 1.0, "ok"),
    ]
    assert all(0 <= r["ms"] < 10_000 for r in results)
    assert json.loads(ask(server, {"items": []})[2]) == {"results": []}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "not JSON"),
        (b'{"items": [', 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 200_000, 400, "not JSON"),
        (b"1" * 10_000, 400, "not JSON"),
        ([ITEM], 422, '{\\"items\\":'),
        ({"items": {}}, 422, '{\\"items\\":'),
        ({"items": [ITEM, "x"]}, 422, "items[1] is not an object"),
        ({"items": [ITEM | {"id": None}]}, 422, "items[0].id must be a string or an integer"),
        ({"items": [ITEM | {"id": True}]}, 422, "items[0].id"),
        ({"items": [ITEM | {"gold": 2}]}, 422, "items[0].gold must be a string"),
        ({"items": [{"id": 1, "gold": "2"}]}, 422, "items[0].response must be a string"),
        ({"items": [ITEM] * 101}, 413, "101 items in one request; at most 100"),
        (b" " * 50_000_000, 413, "larger than 16777216 bytes"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why_and_harms_nobody(server, body, status, told):
    answered, _, text = ask(server, body)
    assert (answered, told in text.decode()) == (status, True), text
    assert_alive(server)


@pytest.mark.parametrize("token", [None, "", "a-token-of-the-test", TOKEN + "s", "\xff"])
def test_whoever_has_another_token_gets_nothing_but_health(server, token):
    for path, method in (("/grade", "POST"), ("/metrics", "GET")):
        assert ask(server, {"items": [ITEM]}, token=token, path=path, method=method)[0] == 401
    assert ask(server, b" " * 50_000_000, token=token)[0] == 401
    status, _, body = ask(server, b"", path="/health", method="GET", token=token)
    assert (status, json.loads(body)) == (200, {"status": "ok", "workers": 2, "waiting": 0})
    assert_alive(server)


def test_openrlhf_is_answered_in_its_own_words(server):
    prompt = r"Put it in \boxed{7}. 1+1?"
    body = {"query": [prompt + r" \boxed{2}", prompt + " 2"], "prompts": [prompt] * 2, "labels": ["2", 2]}
    status, _, answer = ask(server, body, path="/openrlhf")
    assert status == 200
    assert json.loads(answer) == {
        "rewards": [1.0, -1.0],
        "scores": [1.0, 0.0],
        "extra_logs": {"correct": [1.0, 0.0], "no_answer": [0.0, 1.0], "timeout_or_crash": [0.0, 0.0]},
    }
    refused = {"query": ["x"], "prompts": ["x"], "labels": [None]}
    status, _, answer = ask(server, refused, path="/openrlhf")
    assert status == 422 and b"labels[0]: the gold answer None cannot be used" in answer
    assert ask(server, body, path="/openrlhf", token="another")[0] == 401


def test_the_token_may_be_the_password_of_the_url(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    for password, expected in ((TOKEN, 200), ("another", 401)):
        credentials = base64.b64encode(f"me:{password}".encode()).decode()
        connection.request("POST", "/grade", json.dumps({"items": []}), {"Authorization": f"Basic {credentials}"})
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (expected, True)
    connection.close()


def test_a_server_whose_workers_do_not_start_any_more_says_so_and_ends():
    told = []

    class Pool:
        broken = "reward workers did not start 3 times in a row"

        async def grade_async(self, items):
            raise RuntimeError(self.broken)

    async def ask_once():
        service = server_module._GradingService(Pool(), lambda: told.append("end"))
        with pytest.raises(RuntimeError, match="did not start"):
            await service.start_grading([], server_module.results_json)

    asyncio.run(ask_once())
    assert told == ["end"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(server):
    def chunks():
        for _ in range(1000):  # a gigabyte, of which the server takes no more than it must
            yield b" " * 2**20

    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.request("POST", "/grade", chunks(), {"Authorization": f"Bearer {TOKEN}"})
    finally:
        connection.close()
    assert_alive(server)


def test_a_client_that_leaves_amid_its_request_harms_nobody(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /grade HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n{{"
        connection.sendall(head.encode())
    assert_alive(server)


def test_metrics_count_requests_and_items_in_prometheus_text():
    with reward_server() as server:
        ask(server, {"items": [ITEM, ITEM | {"response": "none"}]}, token=None)
        ask(server, b"{", token=None)
        status, headers, body = ask(server, b"", path="/metrics", method="GET", token=None)
    lines = body.decode().splitlines()
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for line in (
        'simplerl_reward_requests_total{code="200"} 1',
        'simplerl_reward_requests_total{code="400"} 1',
        'simplerl_reward_items_total{verdict="correct",status="ok"} 1',
        'simplerl_reward_items_total{verdict="no_answer",status="ok"} 1',
        "# TYPE simplerl_reward_items_waiting gauge",
        "simplerl_reward_items_waiting 0",
        "simplerl_reward_workers 2",
    ):
        assert line in lines


async def _post(port: int, number: int, gate: asyncio.Semaphore) -> list[tuple[str, str]]:
    """Post eight items whose ids tell the expected verdicts; returns the ids with their verdicts."""
    items = [
        {"id": f"{number}-{k}", "gold": str(number), "response": rf"\boxed{{{number + (number + k) % 2}}}"}
        for k in range(8)
    ]
    body = json.dumps({"items": items})
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /grade HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        answer = await reader.read()
        writer.close()
    results = json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
    return [(result["id"], result["verdict"]) for result in results]


@pytest.mark.slow
def test_a_thousand_requests_at_once_lose_no_item_and_mix_up_none():
    async def flood(port):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        gate = asyncio.Semaphore(min(1000, most - 100))
        return await asyncio.gather(*(_post(port, number, gate) for number in range(1000)))

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
    try:
        with reward_server() as server:
            answers = asyncio.run(flood(server.port))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    for number, answer in enumerate(answers):
        verdicts = ["incorrect" if (number + k) % 2 else "correct" for k in range(8)]
        assert answer == [(f"{number}-{k}", verdicts[k]) for k in range(8)]


def in_thread(server, body):
    """Start a request in a thread; returns the thread and the list that will hold the answer."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, body, token=None)))
    thread.start()
    return thread, answers


def wait_until_waiting(server, count):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if json.loads(ask(server, b"", path="/health", method="GET")[2])["waiting"] == count:
            return
        time.sleep(0.02)
    raise AssertionError(f"there were never {count} items waiting")


def items(*responses):
    return {"items": [{"id": k, "gold": "1", "response": response} for k, response in enumerate(responses)]}


def test_when_too_many_items_wait_others_are_told_to_come_back():
    with reward_server(3, 3.0, command=MISBEHAVING_SERVER) as server:
        slow, answers = in_thread(server, items("sleep 1.0"))
        wait_until_waiting(server, 1)
        status, headers, body = ask(server, items("say 1", "say 2", "say 3"))
        assert (status, headers["Retry-After"]) == (503, "1") and b"1 items are waiting" in body
        assert ask(server, items("say 1", "say 2"))[0] == 200
        slow.join()
        assert answers[0][0] == 200
        assert ask(server, items("say 1", "say 2", "say 3", "say 4"))[0] == 200


def test_a_long_wait_is_filled_with_spaces_and_a_client_that_leaves_withdraws_its_items():
    with reward_server(1000, 0.1, command=MISBEHAVING_SERVER) as server:
        status, _, body = ask(server, items("sleep 0.51"))
        assert status == 200 and body.startswith(b"  ") and json.loads(body)["results"][0]["verdict"] == "correct"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            body = json.dumps(items("sleep 0.6", *(f"hang {k}" for k in range(50))))
            connection.sendall(f"POST /grade HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_until_waiting(server, 51)
        wait_until_waiting(server, 0)


def test_sigterm_finishes_what_is_in_flight_and_refuses_what_is_new():
    with reward_server(1000, 0.3, command=MISBEHAVING_SERVER) as server:
        threads = [in_thread(server, items("say 1", f"sleep 1.{k}1")) for k in range(2)]
        wait_until_waiting(server, 4)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            ask(server, items("say 1"))
        for thread, answers in threads:
            thread.join()
            assert [r["verdict"] for r in json.loads(answers[0][2])["results"]] == ["correct", "correct"]
        assert server.process.wait(timeout=10) == 0


def test_an_idle_server_ends_at_once_with_its_workers():
    with reward_server() as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        workers = children.read_text().split() if children.exists() else []
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=5) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "BUSY"], "choose another --host or --port"),
        (["--host", "no.such.host.invalid"], "choose another --host or --port"),
        (["--workers", "0"], "0 is not at least 1"),
        (["--timeout-s", "nan"], "nan is not a number above 0"),
        (["--token", "with space"], "printable ASCII without spaces"),
        (["--token", ""], "printable ASCII without spaces"),
    ],
)
def test_a_server_that_cannot_start_as_asked_says_so_with_status_2(arguments, told):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        words = [word.replace("BUSY", str(busy.getsockname()[1])) for word in arguments]
        command = [sys.executable, "-m", "nemo_simplerl", "reward-server", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_an_open_port_without_a_token_is_warned_about():
    command = [sys.executable, "-m", "nemo_simplerl", "reward-server", "--host", "0.0.0.0", "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "SIMPLERL_REWARD_TOKEN"}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert "reward server on" in process.stdout.readline()
    process.terminate()
    assert "set SIMPLERL_REWARD_TOKEN" in process.communicate(timeout=10)[1]


def test_the_server_loads_no_torch():
    code = "import sys, nemo_simplerl.cli.reward_server, nemo_simplerl.reward.serving.server"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False"]
