"""A client of reward servers: `RewardPool.grade` over HTTP, with several servers, retries and a deadline."""

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, get_args
from urllib.parse import urlsplit

from nemo_simplerl.reward.grade import Verdict
from nemo_simplerl.reward.serving.pool import Grade, Item, Sample, Status, chunked

TOKEN_VARIABLE = "SIMPLERL_REWARD_TOKEN"  # in the environment of server and training; no key: run directories keep keys
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_MOST_EXTENSIONS = 3  # of a batch's deadline: a server that dies at every answer is dead
_SHUNNED_S = 30.0  # how long a server that failed is asked after the others
_CHECK_TIMEOUT_S = 5.0
_ADVICE = (
    "Start one with `simplerl reward-server`, see that reward.url is its address and that this machine reaches it, "
    "or set reward.url=null to grade on this machine."
)


class _Refused(RuntimeError):
    """No attempt at this server can succeed. `advice` says what would; its text ends without a full stop."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}. {advice}")
        self.reason, self.advice = reason, advice


class _Unanswered(Exception):
    """This attempt returned no grades; another may. `began`: the server had begun to answer when it failed."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0, began: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.began = began


class RewardClient:
    """Grades at the reward servers `urls` in turn. Thread-safe; a context manager that closes it.

    A request fails when its server is silent for `timeout_s`: a server at work sends a space every few seconds, however
    long it takes. A batch is tried at every server, then again with growing pauses; RuntimeError after `give_up_s` in
    which no server has begun to answer. No answer is ever graded by guess.

    function: digest of the user's function that the servers are to score with; None for the math grader.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        token: str | None = None,
        timeout_s: float = 15.0,
        batch_size: int = 64,
        num_connections: int = 8,
        give_up_s: float = 50.0,
        function: str | None = None,
    ) -> None:
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        if not self._urls or min(timeout_s, batch_size, num_connections, give_up_s) <= 0:
            raise ValueError(
                "a reward client needs a URL, and timeout_s, batch_size, num_connections and give_up_s above 0, got "
                f"{self._urls}, {timeout_s}, {batch_size}, {num_connections} and {give_up_s}"
            )
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s = timeout_s
        self._batch_size = batch_size
        self._give_up_s = give_up_s
        self.digest = function
        self._turns = itertools.count()
        self._failed_at: dict[str, float] = {}
        self._closed = threading.Event()
        self._threads = ThreadPoolExecutor(num_connections, thread_name_prefix="reward-client")

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """The grade of each item, in order. RuntimeError where no server answers in time or one refuses the request."""
        if self._closed.is_set():
            raise RuntimeError("the reward client is closed")
        batches = [self._threads.submit(self._grade_batch, part) for part in chunked(items, self._batch_size)]
        try:
            return [grade for batch in batches for grade in batch.result()]
        except BaseException:
            for batch in batches:
                batch.cancel()
            raise

    def check(self) -> list[str]:
        """Ask every server once: one message for each that cannot be used. ValueError where none can."""
        problems: list[str] = []
        advice: dict[str, None] = {}  # in order, each once
        for url in self._urls:
            try:
                self._ask(url, [], _CHECK_TIMEOUT_S)
            except (_Unanswered, _Refused) as error:
                reason = error.reason if isinstance(error, _Refused) else str(error)
                problems.append(f"no reward server can be used at {url}: {reason}")
                advice[error.advice if isinstance(error, _Refused) else _ADVICE] = None
        if len(problems) == len(self._urls):
            raise ValueError(f"{'; '.join(problems)}. {' '.join(advice)}")
        return problems

    def close(self) -> None:
        """End waiting calls of `grade` with a RuntimeError. Safe to repeat."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "RewardClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _grade_batch(self, items: Sequence[Item]) -> list[Grade]:
        deadline = time.monotonic() + self._give_up_s
        extensions = _MOST_EXTENSIONS
        reasons: dict[str, str] = {}
        for longest_delay_s in _growing_delays():
            retry_after_s = 0.0
            for url in self._in_turn():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                try:
                    return self._ask(url, items, min(self._timeout_s, left_s))
                except _Unanswered as error:
                    reasons[url] = str(error)
                    retry_after_s = max(retry_after_s, error.retry_after_s)
                    self._failed_at[url] = time.monotonic()
                    if error.began and extensions:
                        extensions -= 1
                        deadline = time.monotonic() + self._give_up_s
            # Full jitter keeps the ranks of a run from returning all at once.
            delay_s = max(retry_after_s, longest_delay_s * random.uniform(0.5, 1.0))
            if time.monotonic() + delay_s >= deadline:
                raise RuntimeError(self._gave_up(reasons))
            if self._closed.wait(delay_s):
                raise RuntimeError("the reward client was closed before the grading ended")
        raise AssertionError("the delays have no end")

    def _in_turn(self) -> list[str]:
        """Every URL, starting with the next one; those that failed in the last 30 s come last."""
        first = next(self._turns) % len(self._urls)
        rotated = self._urls[first:] + self._urls[:first]
        now = time.monotonic()
        return sorted(rotated, key=lambda url: now - self._failed_at.get(url, -_SHUNNED_S) < _SHUNNED_S)

    def _ask(self, url: str, items: Sequence[Item], timeout_s: float) -> list[Grade]:
        """The grades of one request. _Unanswered where another attempt may succeed, _Refused where none would."""
        named = [{"id": k, "gold": item[0], "response": item[1]} for k, item in enumerate(items)]
        if self.digest is not None:
            named = [fields | {"facts": dict(_facts(item))} for fields, item in zip(named, items, strict=True)]
        body = json.dumps({"items": named}).encode("ascii")
        try:
            status, retry_after, answer = self._post(f"{url.rstrip('/')}/grade", body, timeout_s)
        except (OSError, HTTPException) as error:
            raise _Unanswered(_in_words(error)) from error
        if status in (200, 422):
            self._require_function(url, answer)
            return _read_grades(answer, len(items))
        reason = f"status {status}, {_detail(answer) or answer[:200].decode(errors='replace')}"
        if status in (408, 429) or status >= 500:
            raise _Unanswered(reason, retry_after_s=_seconds(retry_after))
        advice = (
            f"Set {TOKEN_VARIABLE} to the token that the server was started with, on every machine of the training."
            if status in (401, 403)
            else _ADVICE
        )
        raise _Refused(f"the reward server {url} refuses the request: {reason}", advice)

    def _require_function(self, url: str, answer: bytes) -> None:
        """Raise _Refused where the answer is of another reward than is asked for, or tells why there is none."""
        if (detail := _detail(answer)) is not None:
            raise _Refused(f"the reward server {url} cannot score: {detail}", "Mend the function, and start again.")
        theirs = _value(answer, "function")
        if theirs != self.digest and _value(answer, "results") is not None:  # else it is no reward server's answer
            raise _Refused(
                f"the reward server {url} scores with {_reward_in_words(theirs)}, and this run with "
                f"{_reward_in_words(self.digest)}",
                "Give the server the same file with --function FILE.py:NAME as the run has in reward.function, or "
                "neither of them one.",
            )

    def _post(self, url: str, body: bytes, timeout_s: float) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and body. `timeout_s` bounds every wait until the answer begins, not their sum."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=timeout_s)
        try:
            # A server that refuses early closes its end; its answer is there to read.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", parts.path, body, self._headers)
            socket = connection.sock
            response = connection.getresponse()
            try:
                socket.settimeout(self._timeout_s)
                return response.status, response.headers.get("Retry-After"), response.read()
            except (OSError, HTTPException) as error:
                raise _Unanswered(f"it stopped amid its answer: {_in_words(error)}", began=True) from error
        finally:
            connection.close()

    def _gave_up(self, reasons: dict[str, str]) -> str:
        tried = ", ".join(f"{url} ({reason})" for url, reason in reasons.items())
        return f"no reward server gave grades within {self._give_up_s:g} s: {tried}. {_ADVICE}"


def _growing_delays() -> Iterator[float]:
    delay_s = _FIRST_DELAY_S
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def _facts(item: Item) -> Mapping[str, Any]:
    return item.facts if isinstance(item, Sample) else {}


def _value(answer: bytes, name: str) -> Any:
    """The entry `name` of an answer; None where there is none, or the answer is no JSON object."""
    try:
        return json.loads(answer).get(name)
    except (ValueError, AttributeError):
        return None


def _detail(answer: bytes) -> str | None:
    """Why a server refuses, in its own words."""
    detail = _value(answer, "detail")
    return None if detail is None else str(detail)


def _reward_in_words(digest: str | None) -> str:
    return "the math grader" if digest is None else f"a function of digest {digest[:12]}"


def _read_grades(answer: bytes, count: int) -> list[Grade]:
    """The grades in the order of the items. _Unanswered where the answer is not one to `count` items."""
    try:
        results = json.loads(answer)["results"]
        grades = [_read_grade(result) for result in results]
        ids = [result["id"] for result in results]
    except (ValueError, KeyError, TypeError) as error:
        raise _Unanswered(f"it is no reward server: it answered {answer[:100]!r}") from error
    if ids != list(range(count)):
        raise _Unanswered(f"it was asked for {count} grades and answered with the ids {ids!r:.100}")
    return grades


def _read_grade(result: Any) -> Grade:
    if result["verdict"] not in get_args(Verdict) or result["status"] not in get_args(Status):
        raise ValueError(f"unknown verdict or status in {result!r:.100}")
    return Grade(
        result["verdict"],
        result["status"],
        float(result["ms"]),
        result.get("score"),
        result.get("metrics"),
        result.get("error", ""),
    )


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; 0 where it is missing or a date, its other form."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__
