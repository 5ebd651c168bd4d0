"""`simplerl reward-server`: serves the grader over HTTP until SIGTERM."""

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from nemo_simplerl.reward.serving.client import TOKEN_VARIABLE
from nemo_simplerl.user_functions import require_usable, user_function

if TYPE_CHECKING:
    from nemo_simplerl.reward.serving.pool import RewardPool


def run(argv: list[str]) -> int:
    """Exit status: 0 after SIGTERM, 2 where the server cannot start as asked."""
    args = _parser().parse_args(argv)
    token = os.environ.get(TOKEN_VARIABLE) if args.token is None else args.token
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        return _fail("the token must be printable ASCII without spaces, such as `openssl rand -hex 16` prints")
    if args.function is not None:
        try:
            require_usable(user_function(args.function))
        except ValueError as error:
            return _fail(f"--function {args.function} {error}")
    # After the arguments are known to make sense: FastAPI takes half a second to import.
    from nemo_simplerl.reward.adapters.scoring import values_of
    from nemo_simplerl.reward.serving.server import ServerLimits, run_server

    try:
        listener = listen(args.host, args.port)
    except OSError as error:
        return _fail(f"cannot listen on {args.host} port {args.port}: {error}; choose another --host or --port")
    limits = ServerLimits(request_bytes=int(args.max_request_mb * 2**20), items=args.max_items, queue=args.queue_limit)
    with closing(listener):
        host, port = listener.getsockname()[:2]
        if token is None and not ipaddress.ip_address(host).is_loopback:
            print(f"warning: whoever reaches {host} may use this server; set {TOKEN_VARIABLE}", file=sys.stderr)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            with _pool(args) as pool:
                ready = f"reward server on {url}, {args.workers} workers"
                run_server(
                    pool,
                    limits,
                    token=token,
                    listener=listener,
                    started=lambda: print(ready, flush=True),
                    values=values_of(args.values),
                )
        except (RuntimeError, ValueError) as error:
            return _fail(str(error))
    return 0


def _pool(args: argparse.Namespace) -> "RewardPool":
    from nemo_simplerl.reward.functions.pool import FunctionPool
    from nemo_simplerl.reward.serving.pool import RewardPool

    size = (args.workers, args.timeout_s, args.memory_limit_mb)
    return RewardPool(*size) if args.function is None else FunctionPool(args.function, *size)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl reward-server",
        description="Grade over HTTP: POST /grade, POST /openrlhf, GET /health, GET /metrics. Training uses it with "
        "reward.url=URL, OpenRLHF with URL/openrlhf as its remote reward.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every interface")
    parser.add_argument("--port", type=_integer(0, 65535), default=8471, help="0 for any that is free")
    parser.add_argument("--workers", type=_integer(1), default=os.cpu_count() or 1, help="grading processes")
    parser.add_argument("--timeout-s", type=_positive, default=10.0, help="an item that takes longer is incorrect")
    parser.add_argument("--memory-limit-mb", type=_integer(1), default=2048, help="of a grading process")
    parser.add_argument("--function", metavar="FILE.py:NAME", help="score with this function, as reward.function does")
    parser.add_argument(
        "--values", choices=("recipe", "binary"), default="recipe", help="of the verdicts: +1, -0.5 and -1, or 1 and 0"
    )
    parser.add_argument("--token", help=f"what clients must send; better in {TOKEN_VARIABLE}, which ps does not show")
    parser.add_argument("--max-request-mb", type=_positive, default=16.0, help="larger bodies get 413")
    parser.add_argument("--max-items", type=_integer(1), default=1024, help="in one request; more get 413")
    parser.add_argument("--queue-limit", type=_integer(1), default=100_000, help="items that may wait; more get 503")
    return parser


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {f'at least {low}' if high is None else f'{low}-{high}'}")
        return value

    return integer


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens for connections. Raises OSError where that is not possible."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def _fail(text: str) -> int:
    print(f"simplerl reward-server: {text}", file=sys.stderr)
    return 2
