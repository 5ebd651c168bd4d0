"""A reward worker whose grader does what the response says. The pool's tests run it."""

import os
import sys
import time

from nemo_simplerl.reward.grade import Judgement
from nemo_simplerl.reward.serving.worker import serve


def judge(gold: str, response: str) -> Judgement:
    return Judgement(obey(gold, response), not response.startswith("garble "))


def obey(gold: str, response: str) -> str:
    order, _, rest = response.partition(" ")
    if order == "hang":
        time.sleep(600)
    elif order == "spin":
        return str(7 ** (10**9))  # holds the interpreter in one C call: no signal handler or thread gets a turn
    elif order == "raise":
        raise ValueError("a bug in the grader")
    elif order == "abort":
        os.abort()
    elif order == "allocate":
        return "correct" if bytes(int(rest) << 20) else "incorrect"
    elif order == "sleep":
        time.sleep(float(rest))
    elif order == "print":
        print("a stray print " * 100)
        os.write(1, b"and a raw one")
    elif order == "read":
        return "correct" if sys.stdin.read() == "" else "incorrect"
    elif order == "nonsense":
        return "perhaps"
    return "correct" if rest.endswith(gold) else "incorrect"


serve(judge, int(sys.argv[1]), int(sys.argv[2]))
