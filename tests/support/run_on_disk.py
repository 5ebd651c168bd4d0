"""Writes a run directory with numbers and samples that are drawn from a seed."""

import json
import math
import random
from pathlib import Path

PHASES = ("rollout", "reward", "old_logprobs", "reference_logprobs", "values", "critic_update", "actor_update", "refit")


def write_run(path: Path, *, steps: int, per_step: int = 4, eval_every: int = 10, seed: int = 0) -> Path:
    """Write a run like the quickstart's: word problems, short responses, evaluated at step 0 and every `eval_every`."""
    draw = random.Random(seed)
    for folder in ("rollouts", "eval", "data"):
        (path / folder).mkdir(parents=True)
    problems = [problem(draw, number) for number in range(40 * max(per_step, 8))]
    for name in ("train", "eval"):
        write_lines(path / "data" / f"{name}.jsonl", problems)
    data = f"train_path: {path}/data/train.jsonl\n  eval_path: {path}/data/eval.jsonl"
    (path / "config.yaml").write_text(f"data:\n  {data}\n  question_field: question\n  answer_field: answer\n")
    rows = []
    for step in range(steps + 1):
        row = {"step": step} | (metrics(draw, step, steps) if step else {})
        if step % eval_every == 0:
            row |= {"eval/accuracy": 0.1 + 0.8 * step / max(steps, 1), "eval/sampled_accuracy": 0.2}
            row |= {"eval/length_mean": 22.0 + step / 10, "eval/truncated_share": 0.01}
            asked = [
                sample(draw, problems[number], step) | {"mode": "greedy"} for number in range(max(per_step // 4, 2))
            ]
            write_lines(path / "eval" / f"step_{step:06d}.jsonl", asked)
        if step:
            asked = [sample(draw, draw.choice(problems), step) for _ in range(per_step)]
            write_lines(path / "rollouts" / f"step_{step:06d}.jsonl", asked)
        rows.append(row)
    write_lines(path / "metrics.jsonl", rows)
    return path


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def problem(draw: random.Random, number: int) -> dict:
    start, more = draw.randrange(2, 30), draw.randrange(2, 30)
    question = f"Kim has {start} pens. Then gets {more}. How many pens?"
    subject = draw.choice(["Algebra", "Geometry"])
    return {"id": f"p-{number}", "question": question, "answer": str(start + more), "level": 1 + number % 3} | {
        "subject": subject
    }


def sample(draw: random.Random, asked: dict, step: int) -> dict:
    verdict = draw.choice(["correct", "incorrect", "no_answer"])
    gold = asked["answer"]
    said = gold if verdict == "correct" else str(int(gold) + draw.randrange(1, 9))
    text = f"Adding gives ${said}-{draw.randrange(9)}={said}$, so "
    response = f"{text}{said}." if verdict == "no_answer" else rf"{text}\boxed{{{said}}}"
    return {
        "id": asked["id"],
        "prompt": asked["question"],
        "response": response,
        "gold": gold,
        "verdict": verdict,
        "status": "ok",
        "reward": {"correct": 1.0, "incorrect": -0.5, "no_answer": -1.0}[verdict],
        "length": draw.randrange(5, 60),
        "finish_reason": draw.choice(["stop", "stop", "stop", "length"]),
        "weight_version": step - 1,
        "seed": draw.getrandbits(60),
    }


def metrics(draw: random.Random, step: int, steps: int) -> dict:
    """A value for every metric that the page draws, as of a training step."""
    done = step / steps
    correct = min(max(0.1 + 0.7 * done + draw.gauss(0, 0.05), 0.0), 0.9)
    seconds = {f"time/{phase}": 0.3 + draw.random() / 5 for phase in PHASES}
    return {
        "reward/mean": 1.5 * correct - 0.5,
        "reward/correct_share": correct,
        "reward/incorrect_share": (1 - correct) * 0.7,
        "reward/no_answer_share": (1 - correct) * 0.3,
        "rollout/length_mean": 20 + 10 * done + draw.gauss(0, 1),
        "rollout/length_p95": 40 + 10 * done + draw.gauss(0, 2),
        "rollout/truncated_share": 0.2 * (1 - done),
        "actor/kl_ref": 0.1 * done,
        "actor/kl_ref_k3": 0.08 * done,
        "actor/approx_kl": 1e-4 * math.exp(draw.gauss(0, 1)),
        "actor/entropy": 0.5 - 0.4 * done + draw.gauss(0, 0.01),
        "actor/clip_fraction": abs(draw.gauss(0, 0.01)),
        "critic/value_clip_fraction": abs(draw.gauss(0, 0.02)),
        "critic/explained_variance": -5.0 if step == 1 else 0.8 * done + draw.gauss(0, 0.1),
        "actor/grad_norm_max": 1 + draw.random(),
        "critic/grad_norm_max": 2 + draw.random(),
        "consistency/logprob_diff_mean": 3e-7,
        "consistency/logprob_diff_max": 1e-5 * (1 + draw.random()),
        "consistency/share_beyond": 0.0,
        "consistency/tripped": 0.0,
        "actor/skipped_updates": float(step == 3),
        "critic/skipped_updates": 0.0,
        "time/tokens_per_second": 900 + draw.gauss(0, 30),
        "time/total": sum(seconds.values()) + 0.2,
        **seconds,
    }
