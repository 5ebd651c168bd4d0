"""The grader over HTTP, for use across nodes. `simplerl reward-server` runs it.

    POST /grade    {"items": [{"id", "gold", "response"}]} -> {"results": [{"id", "verdict", "reward", "status", "ms"}]}
    GET  /health   {"status": "ok", "workers", "waiting"}
    GET  /metrics  Prometheus text

Results come in the order of the items. An answer that takes long is preceded by spaces, which JSON allows: whoever
waits can tell a server that works from one that is gone. Refusals are 4xx with {"detail"}, and 503 with Retry-After
while too many items wait.
"""

import asyncio
import hmac
import json
import resource
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from nemo_simplerl.reward.grade import reward_of
from nemo_simplerl.reward.serving.pool import Grade, RewardPool

HEARTBEAT_S = 3.0
BODY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0  # for requests in flight at SIGTERM: what SLURM grants between its two signals
_DRAINED = 8  # a body up to this many times the limit is read to its end and thrown away: its sender reads why
_MAX_OPEN_FILES = 65536  # one a connection; the customary soft limit of 1024 is below a thousand clients


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for. `queue` is the number of items that may wait before others are told to come back."""

    request_bytes: int
    items: int
    queue: int


@dataclass(frozen=True, slots=True)
class Question:
    id: str | int
    gold: str
    response: str


def run_server(
    pool: RewardPool, limits: Limits, *, token: str | None, listener: socket.socket, started: Callable[[], None]
) -> None:
    """Serve until SIGTERM, finish what is in flight, refuse what is new. Call in the main thread.

    `started` is called once connections are answered. KeyboardInterrupt after SIGINT.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MAX_OPEN_FILES), most))
    config = uvicorn.Config(
        build_app(pool, limits, token=token),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(STOP_TIMEOUT_S),
    )
    server = _Server(config, started)
    # uvicorn raises the signal again once it has stopped; by then there is nothing left to end.
    signal.signal(signal.SIGTERM, lambda number, frame: setattr(server, "should_exit", True))
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


def build_app(pool: RewardPool, limits: Limits, *, token: str | None) -> FastAPI:
    """The application. A `token` is asked for by /grade and /metrics, as `Authorization: Bearer TOKEN`."""
    app = FastAPI(title="SimpleRL reward server", docs_url=None, redoc_url=None, openapi_url=None)
    desk = _Desk(pool)

    @app.post("/grade")
    async def grade(request: Request) -> Response:
        try:
            response = await _answer(request, desk, limits, token)
        except HTTPException as refusal:
            desk.requests[refusal.status_code] += 1
            raise
        desk.requests[response.status_code] += 1
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "workers": len(pool.worker_pids()), "waiting": desk.waiting}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _authorize(request, token)
        return PlainTextResponse(desk.exposition(), media_type="text/plain; version=0.0.4")

    return app


async def _answer(request: Request, desk: "_Desk", limits: Limits, token: str | None) -> Response:
    _authorize(request, token)
    desk.refuse_when_full(0, limits.queue)  # before a body takes memory
    try:
        body = await asyncio.wait_for(_read_body(request, limits.request_bytes), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        return Response(status_code=400)
    questions = parse_questions(body, limits.items)
    desk.refuse_when_full(len(questions), limits.queue)
    work = desk.begin(questions)
    done, _ = await asyncio.wait([work], timeout=HEARTBEAT_S)
    if not done:
        return StreamingResponse(_spaces_until(work), media_type="application/json")
    try:
        return Response(work.result(), media_type="application/json")
    except RuntimeError as error:  # no worker can be started
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


async def _spaces_until(work: "asyncio.Task[bytes]") -> AsyncIterator[bytes]:
    """The answer, with a space for every few seconds before it. A client that leaves withdraws the work."""
    try:
        while not (await asyncio.wait([work], timeout=HEARTBEAT_S))[0]:
            yield b" "
        yield work.result()
    finally:
        work.cancel()


class _Desk:
    """Work in hand and the counts of what was done. Lives in one event loop."""

    def __init__(self, pool: RewardPool) -> None:
        self.waiting = 0  # items
        self.requests: Counter[int] = Counter()  # by status code
        self._pool = pool
        self._items: Counter[tuple[str, str]] = Counter()  # by verdict and status
        self._seconds = 0.0

    def refuse_when_full(self, num_items: int, most: int) -> None:
        """503 where the items would have to wait behind too many. An idle server takes a request of any size."""
        if self.waiting and self.waiting + num_items > most:
            raise HTTPException(503, f"{self.waiting} items are waiting; at most {most} may", {"Retry-After": "1"})

    def begin(self, questions: Sequence[Question]) -> "asyncio.Task[bytes]":
        """Grade in a task of its own, whose result is the body of the answer."""
        self.waiting += len(questions)
        work = asyncio.create_task(self._grade(questions))
        work.add_done_callback(lambda _: self._release(len(questions)))
        return work

    def exposition(self) -> str:
        """The counts in Prometheus' text format, version 0.0.4."""
        requests = [(f'{{code="{code}"}}', count) for code, count in sorted(self.requests.items())]
        items = [(f'{{verdict="{v}",status="{s}"}}', count) for (v, s), count in sorted(self._items.items())]
        families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
            ("requests_total", "counter", "Requests to /grade by status code.", [*requests]),
            ("items_total", "counter", "Items graded by verdict and status.", [*items]),
            (
                "grading_seconds_total",
                "counter",
                "Time that grading took; a repeated answer's counts again.",
                [("", self._seconds)],
            ),
            ("items_waiting", "gauge", "Items accepted and not answered yet.", [("", self.waiting)]),
            ("workers", "gauge", "Live worker processes.", [("", len(self._pool.worker_pids()))]),
        ]
        lines = []
        for name, kind, text, samples in families:
            full = f"simplerl_reward_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
            lines += [f"{full}{labels} {value}" for labels, value in samples]
        return "\n".join(lines) + "\n"

    async def _grade(self, questions: Sequence[Question]) -> bytes:
        grades = await self._pool.grade_async([(question.gold, question.response) for question in questions])
        for grade in grades:
            self._items[grade.verdict, grade.status] += 1
            self._seconds += grade.ms / 1000.0
        return render(questions, grades)

    def _release(self, num_items: int) -> None:
        self.waiting -= num_items


def parse_questions(body: bytes, most: int) -> list[Question]:
    """The items of a request. HTTPException 400 where it is no JSON, 422 for wrong fields, 413 for too many items."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    items = request.get("items") if isinstance(request, dict) else None
    if not isinstance(items, list):
        raise HTTPException(422, 'the body must be {"items": [{"id": ..., "gold": ..., "response": ...}, ...]}')
    if len(items) > most:
        raise HTTPException(413, f"{len(items)} items in one request; at most {most}")
    return [_question(number, item) for number, item in enumerate(items)]


def render(questions: Sequence[Question], grades: Sequence[Grade]) -> bytes:
    """The body of an answer. ASCII, so that a lone surrogate in an id survives the way."""
    results = [
        {
            "id": question.id,
            "verdict": grade.verdict,
            "reward": reward_of(grade.verdict),
            "status": grade.status,
            "ms": round(grade.ms, 3),
        }
        for question, grade in zip(questions, grades, strict=True)
    ]
    return json.dumps({"results": results}).encode("ascii")


def _question(number: int, item: Any) -> Question:
    if not isinstance(item, dict):
        raise HTTPException(422, f"items[{number}] is not an object")
    for name, kinds in (("id", (str, int)), ("gold", (str,)), ("response", (str,))):
        if type(item.get(name)) not in kinds:
            wanted = " or ".join("a string" if kind is str else "an integer" for kind in kinds)
            raise HTTPException(422, f"items[{number}].{name} must be {wanted}")
    return Question(item["id"], item["gold"], item["response"])


def _authorize(request: Request, token: str | None) -> None:
    """401 where the token is another. Takes the same time whatever the wrong token has in common with it."""
    if token is None:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})


async def _read_body(request: Request, limit: int) -> bytes:
    """The body, never holding more than `limit` bytes of it. HTTPException 413 where it is larger."""
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size > _DRAINED * limit:
            break
        if size > limit:
            body.clear()
        else:
            body += part
    if size > limit:
        raise HTTPException(413, f"the body is larger than {limit} bytes", {"Connection": "close"})
    return bytes(body)
