"""The grader over HTTP, for use across nodes. `simplerl reward-server` runs it.

    POST /grade    {"items": [{"id", "gold", "response"}]} -> {"results": [{"id", "verdict", "reward", "status", "ms"}]}
    POST /openrlhf {"query": [...], "prompts": [...], "labels": [...]} -> {"rewards", "scores", "extra_logs"}, lists
    GET  /health   {"status": "ok", "workers", "waiting"}
    GET  /metrics  Prometheus text

Results come in the order of the items. A slow answer is preceded by spaces, which JSON allows, so that a client can
tell a server at work from a dead one. Refusals are 4xx with {"detail"}, and 503 with Retry-After while too many items
wait. Where a user's function scores, results have `score` and `metrics` too, items may have `facts` for it, and the
answer names its digest as `function`.
"""

import asyncio
import base64
import hmac
import json
import resource
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from nemo_simplerl.reward.adapters import openrlhf_form
from nemo_simplerl.reward.functions.pool import FunctionFails
from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, Verdict
from nemo_simplerl.reward.serving.pool import Grade, RewardPool, Sample

HEARTBEAT_S = 3.0
BODY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0  # for requests in flight at SIGTERM: what SLURM grants between its two signals
_DRAINED = 8  # a body up to this many times the limit is read to its end and thrown away: its sender reads why
_MAX_OPEN_FILES = 65536  # one a connection; the customary soft limit of 1024 is below a thousand clients


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds on requests. `queue`: how many items may wait before further requests get 503."""

    request_bytes: int
    items: int
    queue: int


@dataclass(frozen=True, slots=True)
class GradeItem:
    """One item of a request; `id` comes back with its grade, and `facts` are for a user's function."""

    id: str | int
    gold: str
    response: str
    facts: Mapping[str, Any]


def run_server(
    pool: RewardPool,
    limits: ServerLimits,
    *,
    token: str | None,
    listener: socket.socket,
    started: Callable[[], None],
    values: Mapping[Verdict, float] = SIMPLERL_REWARDS,
) -> None:
    """Serve until SIGTERM, then finish requests in flight and refuse new ones. Call in the main thread.

    `started` is called once connections are answered; `values` are the rewards of the verdicts. KeyboardInterrupt after
    SIGINT; RuntimeError, with the reason, where the pool's workers do not start any more.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MAX_OPEN_FILES), most))
    config = uvicorn.Config(
        build_app(pool, limits, token=token, values=values, on_broken=lambda: setattr(server, "should_exit", True)),
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
    if pool.broken is not None:
        raise RuntimeError(pool.broken)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


def build_app(
    pool: RewardPool,
    limits: ServerLimits,
    *,
    token: str | None,
    values: Mapping[Verdict, float] = SIMPLERL_REWARDS,
    on_broken: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The HTTP application. With a `token`, all but /health require `Authorization: Bearer TOKEN`, or the token as the
    password of a URL's user."""
    app = FastAPI(title="SimpleRL reward server", docs_url=None, redoc_url=None, openapi_url=None)
    service = _GradingService(pool, on_broken)
    own = _Dialect(parse_items, partial(results_json, values=values, function=pool.digest))
    theirs = _Dialect(_parse_openrlhf, partial(_openrlhf_json, values=values))

    async def graded(request: Request, dialect: _Dialect) -> Response:
        try:
            response = await _answer(request, service, limits, token, dialect)
        except HTTPException as refusal:
            service.requests[refusal.status_code] += 1
            raise
        service.requests[response.status_code] += 1
        return response

    @app.post("/grade")
    async def grade(request: Request) -> Response:
        return await graded(request, own)

    @app.post("/openrlhf")
    async def openrlhf(request: Request) -> Response:
        return await graded(request, theirs)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "workers": len(pool.worker_pids()), "waiting": service.waiting}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _authorize(request, token)
        return PlainTextResponse(service.prometheus_text(), media_type="text/plain; version=0.0.4")

    return app


@dataclass(frozen=True)
class _Dialect:
    """How a request is read, with the most items that it may have, and how the answer is written."""

    read: Callable[[bytes, int], "list[GradeItem]"]
    write: Callable[[Sequence[GradeItem], Sequence[Grade]], bytes]


async def _answer(
    request: Request, service: "_GradingService", limits: ServerLimits, token: str | None, dialect: _Dialect
) -> Response:
    _authorize(request, token)
    service.refuse_when_full(0, limits.queue)  # before a body takes memory
    try:
        body = await asyncio.wait_for(_read_body(request, limits.request_bytes), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        return Response(status_code=400)
    items = await asyncio.to_thread(dialect.read, body, limits.items)
    service.refuse_when_full(len(items), limits.queue)
    work = service.start_grading(items, dialect.write)
    done, _ = await asyncio.wait([work], timeout=HEARTBEAT_S)
    if not done:
        return StreamingResponse(_spaces_until(work), media_type="application/json")
    try:
        return Response(work.result(), media_type="application/json")
    except FunctionFails as error:
        raise HTTPException(422, str(error)) from error
    except RuntimeError as error:  # no worker can be started
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


async def _spaces_until(work: "asyncio.Task[bytes]") -> AsyncIterator[bytes]:
    """The body of the answer, after a space every few seconds. A client that disconnects withdraws the work."""
    try:
        while not (await asyncio.wait([work], timeout=HEARTBEAT_S))[0]:
            yield b" "
        yield work.result()
    except FunctionFails as error:  # the status went out before
        yield json.dumps({"detail": str(error)}).encode("ascii")
    finally:
        work.cancel()


class _GradingService:
    """Grades items, and counts requests, items and waiting items. Used from one event loop."""

    def __init__(self, pool: RewardPool, on_broken: Callable[[], None]) -> None:
        self.waiting = 0  # items
        self.requests: Counter[int] = Counter()  # by status code
        self._pool, self._on_broken = pool, on_broken
        self._items: Counter[tuple[str, str]] = Counter()  # by verdict and status
        self._seconds = 0.0

    def refuse_when_full(self, num_items: int, most: int) -> None:
        """Raise 503 where too many items would wait. An idle server takes a request of any size."""
        if self.waiting and self.waiting + num_items > most:
            raise HTTPException(503, f"{self.waiting} items are waiting; at most {most} may", {"Retry-After": "1"})

    def start_grading(
        self, items: Sequence[GradeItem], write: Callable[[Sequence[GradeItem], Sequence[Grade]], bytes]
    ) -> "asyncio.Task[bytes]":
        """Start a task that grades the items; its result is the body of the answer, which `write` makes."""
        self.waiting += len(items)
        work = asyncio.create_task(self._grade(items, write))
        work.add_done_callback(lambda _: self._release(len(items)))
        return work

    def prometheus_text(self) -> str:
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

    async def _grade(
        self, items: Sequence[GradeItem], write: Callable[[Sequence[GradeItem], Sequence[Grade]], bytes]
    ) -> bytes:
        try:
            grades = await self._pool.grade_async([Sample(item.gold, item.response, item.facts) for item in items])
        finally:
            if self._pool.broken is not None:
                self._on_broken()
        for grade in grades:
            self._items[grade.verdict, grade.status] += 1
            self._seconds += grade.ms / 1000.0
        return write(items, grades)

    def _release(self, num_items: int) -> None:
        self.waiting -= num_items


def parse_items(body: bytes, most: int) -> list[GradeItem]:
    """The items of a request. HTTPException 400 where it is no JSON, 422 for wrong fields, 413 for too many items."""
    request = _parse_json(body)
    items = request.get("items") if isinstance(request, dict) else None
    if not isinstance(items, list):
        raise HTTPException(422, 'the body must be {"items": [{"id": ..., "gold": ..., "response": ...}, ...]}')
    _refuse_too_many(len(items), most)
    return [_parse_item(number, item) for number, item in enumerate(items)]


def results_json(
    items: Sequence[GradeItem],
    grades: Sequence[Grade],
    *,
    values: Mapping[Verdict, float] = SIMPLERL_REWARDS,
    function: str | None = None,
) -> bytes:
    """The body of an answer: JSON in ASCII, so that a lone surrogate in an id survives."""
    results = []
    for item, grade in zip(items, grades, strict=True):
        result: dict[str, Any] = {"id": item.id, "verdict": grade.verdict}
        result |= {"reward": values[grade.verdict] if grade.score is None else grade.score}
        result |= {"status": grade.status, "ms": round(grade.ms, 3)}
        if function is not None:
            result |= {"score": grade.score, "metrics": grade.metrics, "error": grade.error}
        results.append(result)
    answer: dict[str, Any] = {"results": results}
    return json.dumps(answer if function is None else answer | {"function": function}).encode("ascii")


def _parse_openrlhf(body: bytes, most: int) -> list[GradeItem]:
    request = _parse_json(body)
    try:
        samples = openrlhf_form.samples_in(request)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    _refuse_too_many(len(samples), most)
    return [GradeItem(number, *sample) for number, sample in enumerate(samples)]


def _openrlhf_json(items: Sequence[GradeItem], grades: Sequence[Grade], *, values: Mapping[Verdict, float]) -> bytes:
    return json.dumps(openrlhf_form.answer_of(grades, values)).encode("ascii")


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def _refuse_too_many(count: int, most: int) -> None:
    if count > most:
        raise HTTPException(413, f"{count} items in one request; at most {most}")


def _parse_item(number: int, item: Any) -> GradeItem:
    if not isinstance(item, dict):
        raise HTTPException(422, f"items[{number}] is not an object")
    for name, kinds in (("id", (str, int)), ("gold", (str,)), ("response", (str,))):
        if type(item.get(name)) not in kinds:
            wanted = " or ".join("a string" if kind is str else "an integer" for kind in kinds)
            raise HTTPException(422, f"items[{number}].{name} must be {wanted}")
    facts = item.get("facts", {})
    if not isinstance(facts, dict):
        raise HTTPException(422, f"items[{number}].facts must be an object")
    return GradeItem(item["id"], item["gold"], item["response"], facts)


def _authorize(request: Request, token: str | None) -> None:
    """Raise 401 where the token is wrong, in a time that does not depend on how much of it is right."""
    if token is None:
        return
    given = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {token}".encode()) and not hmac.compare_digest(
        _password_of(given), token.encode()
    ):
        raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})


def _password_of(authorization: bytes) -> bytes:
    """The password of HTTP's basic authentication, which a client takes from http://USER:PASSWORD@HOST; else none."""
    kind, _, credentials = authorization.partition(b" ")
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2] if kind.lower() == b"basic" else b""
    except ValueError:
        return b""


async def _read_body(request: Request, limit: int) -> bytes:
    """The body of a request, with at most `limit` bytes of it in memory. HTTPException 413 where it is larger."""
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
