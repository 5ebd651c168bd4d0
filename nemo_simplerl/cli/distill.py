"""`simplerl distill`: samples and grades examples for the warm start, by a model behind an endpoint or on disk."""

import argparse
import os
import sys
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from nemo_simplerl.cli.start.guard import Parser, is_first_rank, path
from nemo_simplerl.cli.start.launch import (
    add_config_options,
    add_prompt_options,
    overrides_of,
    require_different_samples,
    sampling_options,
    with_prompt_options,
)
from nemo_simplerl.config.rules.machine import why_not_writable
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.distill import (
    Request,
    answers_to,
    kept,
    missing_requests,
    request_digest,
    require_different_ids,
    with_boxes,
)
from nemo_simplerl.data.examples import stops_of
from nemo_simplerl.data.problems import Problem

KEY_VARIABLE = "OPENAI_API_KEY"
_RETRIED = (408, 409, 429, 500, 502, 503, 504)


class Endpoint:
    """A client of `POST URL/chat/completions` for several threads.

    What fails for a while (429 and its Retry-After, 5xx, a lost connection, silence) is tried `retries` times with
    growing pauses.
    """

    def __init__(self, url: str, settings: dict[str, Any], *, timeout_s: float, retries: int):
        self._url, self.settings, self._timeout_s, self._retries = url.rstrip("/"), settings, timeout_s, retries
        self._of_thread = threading.local()

    def ask(self, request: Request) -> dict[str, str]:
        """The response and its finish_reason. Raises OSError (as requests' exceptions are) where there is none."""
        body = self.settings | {"messages": request.messages(), "n": 1, "seed": request.sample}
        answer = self._session().post(f"{self._url}/chat/completions", json=body, timeout=self._timeout_s)
        if not answer.ok:
            raise OSError(f"{self._url} answered {answer.status_code}: {' '.join(answer.text.split())[:300]}")
        try:
            choice = answer.json()["choices"][0]
            return {"response": choice["message"]["content"] or "", "finish_reason": str(choice["finish_reason"])}
        except (ValueError, LookupError, TypeError) as error:
            raise OSError(f"{self._url} answered what is no chat completion: {error!r}") from error

    def _session(self):
        if not hasattr(self._of_thread, "session"):
            import requests
            from urllib3.util import Retry

            retry = Retry(
                total=self._retries,
                backoff_factor=0.5,
                backoff_jitter=0.2,
                status_forcelist=_RETRIED,
                allowed_methods=None,
                raise_on_status=False,
            )
            self._of_thread.session = requests.Session()
            for scheme in ("http://", "https://"):
                self._of_thread.session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
            if key := os.environ.get(KEY_VARIABLE):
                self._of_thread.session.headers["Authorization"] = f"Bearer {key}"
        return self._of_thread.session


def run(argv: list[str]) -> int:
    """Exit status: 0; 1 where answers are missing (the same command requests them again). Raises ValueError."""
    args = _parser().parse_intermixed_args(argv)
    from nemo_simplerl.data.problems import problems_of
    from nemo_simplerl.data.rows import write_rows

    if min(args.samples, args.keep, args.connections) < 1:
        raise ValueError("--samples, --keep and --connections must be at least 1.")
    if args.endpoint and args.overrides:
        raise ValueError(f"{' '.join(args.overrides)}: settings of the engine mean nothing to an endpoint.")
    if args.endpoint and not args.endpoint.startswith(("http://", "https://")):
        raise ValueError(f"--endpoint {args.endpoint} is no address; write it as http://HOST:PORT/v1.")
    if args.endpoint and args.examples:
        raise ValueError(f"--examples {args.examples} means nothing to an endpoint: it is for a model sampled here.")
    if args.out.is_dir():
        raise ValueError(f"--out {args.out} is a folder; name a file.")
    if reason := why_not_writable(args.out.parent):
        raise ValueError(f"--out {args.out}: the folder above it {reason}")
    fields = {"question": args.question, "answer": args.answer}
    problems, golds = problems_of(args.problems, fields, without_gold="drop")
    require_different_ids(problems)
    if is_first_rank() and golds.notes():
        print(f"{args.problems}: {', '.join(golds.notes())}")
    config = None if args.endpoint else _config_of(args)
    if args.check:
        return 0
    done, source, failures = _from_endpoint(args, problems) if config is None else _from_model(args, problems, config)
    if not is_first_rank():
        return 0
    verdicts = Counter(row["verdict"] for row in done)
    print(", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common()))
    if args.box:
        with _grading(args) as pool:
            done = with_boxes(problems, done, pool.grade)
        print(f"{sum('rewritten' in row for row in done)} that box nothing end in the right number, which --box boxes")
    rows = kept(problems, done, args.keep, source, () if config is None else stops_of(config.data))
    write_rows(args.out, rows)
    print(f"{len(rows)} examples of {len({row['id'].rpartition('/')[0] for row in rows})} problems: {args.out}")
    if failures:
        print(f"{len(failures)} requests failed ({failures[0]}); the same command asks for them again", file=sys.stderr)
    return 1 if failures else 0


Answers = tuple[list[dict], str, list[str]]  # the samples, the name of their source, why requests failed


def _from_endpoint(args: argparse.Namespace, problems: list[Problem]) -> Answers:
    from nemo_simplerl.files import truncate_jsonl

    record = args.out.with_name(args.out.name + ".samples")
    settings = {name: getattr(args, name) for name in ("model", "temperature", "top_p", "max_tokens")}
    rows = truncate_jsonl(record, lambda row: True)
    done = answers_to(problems, settings, rows)
    if others := len(rows) - len(done):
        print(f"{others} samples in {record} answer other questions or were asked for otherwise, and are not used")
    requests = missing_requests(problems, args.samples, done)
    print(f"{len(problems)} problems, {len(done)} samples are there, {len(requests)} to ask for")
    endpoint = Endpoint(args.endpoint, settings, timeout_s=args.timeout, retries=args.retries)
    with _grading(args) as pool:
        failures = _sample(requests, endpoint, pool, record, done, args.connections)
    return done, args.model, failures


def _grading(args: argparse.Namespace):
    from nemo_simplerl.reward.serving.pool import RewardPool

    return RewardPool(args.workers, timeout_s=10.0, memory_limit_mb=1024)


def _config_of(args: argparse.Namespace) -> Config:
    from nemo_simplerl.config.load import compose

    # Values that have no default and that no sampling reads.
    values = ["model.path=none", "data.train_path=none.jsonl", f"reward.num_workers={args.workers}"]
    config = compose([*values, *overrides_of(args)])
    require_different_samples(args, config)
    return with_prompt_options(args, config)


def _from_model(args: argparse.Namespace, problems: list[Problem], config: Config) -> Answers:
    from nemo_simplerl.trainer.offline.benchmark import EvalRequest, eval_config
    from nemo_simplerl.trainer.offline.teacher import sample_solutions

    request = EvalRequest(
        model=path(args.model),
        output=args.out.with_name(args.out.name + ".teacher"),
        **sampling_options(args),
        limit=None,
        compare=False,
    )
    done, source = sample_solutions(request, eval_config(config, request), problems)
    return done, source, []


def _sample(
    requests: list[Request], endpoint: Endpoint, pool, record: Path, done: list[dict], num_connections: int
) -> list[str]:
    """Send the requests, and grade and store each answer before it counts; returns why requests failed."""
    from nemo_simplerl.files import append_jsonl

    failures: list[str] = []
    num_before = len(done)
    waiting = iter(requests)
    with ThreadPoolExecutor(num_connections) as threads:
        running: dict[Future, Request] = {}

        def start_next() -> None:
            # No more than there are connections: a fatal answer to the first ends it before thousands are queued.
            if (request := next(waiting, None)) is not None:
                running[threads.submit(endpoint.ask, request)] = request

        for _ in range(num_connections):
            start_next()
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                request = running.pop(future)
                try:
                    answer = future.result()
                except OSError as error:
                    failures.append(str(error))
                    if len(failures) >= 10 and len(failures) > len(done) - num_before:
                        continue  # nothing works: what runs comes to its end, nothing new is asked
                else:
                    verdict = pool.grade([(request.problem.answer, answer["response"])])[0].verdict
                    row = {"id": request.problem.id, "sample": request.sample, **answer, "verdict": verdict}
                    row["asked"] = request_digest(request.problem, endpoint.settings)
                    append_jsonl(record, row)
                    done.append(row)
                    if len(done) % 100 == 0:
                        right = sum(row["verdict"] == "correct" for row in done) / len(done)
                        print(f"{len(done)} samples, {100 * right:.1f} % right", flush=True)
                start_next()
    return failures


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="simplerl distill",
        description="Ask a model for solutions, grade them, and write the right ones as examples for `simplerl sft` "
        "(data.sft_path). The model is behind an OpenAI-compatible endpoint (the key, where one is needed, in "
        f"{KEY_VARIABLE}), or a folder or file that is sampled here. Every answer is kept, in OUT.samples or in the "
        "folder OUT.teacher, so that a call that was broken off goes on.",
        epilog="Without --endpoint, settings of conf/ that concern the engine follow as KEY=VALUE: "
        "rollout.engine=vllm model.precision=fp32. Under torchrun the ranks share the work.",
    )
    parser.add_argument("problems", type=path, help=".json, .jsonl, .csv or .parquet")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the engine, without --endpoint")
    parser.add_argument("--endpoint", help="such as http://localhost:8000/v1")
    parser.add_argument(
        "--model",
        required=True,
        help="by the endpoint's name for it; without one a Hugging Face folder, a .nemo, or a run's checkpoints/step_N",
    )
    add_config_options(parser)
    parser.add_argument("--out", type=path, required=True, help="JSON lines of question, response, answer, source")
    parser.add_argument("--question", default="question", metavar="FIELD")
    parser.add_argument("--answer", default="answer", metavar="FIELD")
    parser.add_argument("--samples", type=int, default=4, help="of each problem")
    parser.add_argument("--keep", type=int, default=1, help="right and different ones of each problem")
    parser.add_argument(
        "--box", action="store_true", help="box the last number of responses that box nothing, where it is right"
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2, help="processes that grade")
    asked = parser.add_argument_group("of an endpoint")
    asked.add_argument("--connections", type=int, default=16)
    asked.add_argument("--timeout", type=float, default=600.0, help="seconds of silence before a request is repeated")
    asked.add_argument("--retries", type=int, default=6)
    here = parser.add_argument_group("of a model that is sampled here")
    add_prompt_options(here)
    here.add_argument("--seed", type=int, default=0)
    return parser
