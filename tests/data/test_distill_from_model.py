"""`simplerl distill` with a model of our own as the teacher."""

import io
import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_simplerl.cli.main import main
from nemo_simplerl.config.schema import CreateConfig
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.trainer.setup.prepare import create_model
from support.ranks import run_ranks

NUM_PROBLEMS = 200  # two chunks of every sample
ANSWER = "\\boxed{7}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that mostly gives one answer, whatever the question, and problems of which every third has it."""
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"hidden_size": 64, "num_layers": 1, "num_attention_heads": 2, "num_query_groups": 1, "ffn_hidden_size": 64}
    create = CreateConfig(
        **sizes, vocab_size=512, max_position_embeddings=128, share_embeddings_and_output_weights=False
    )
    create_model(folder / "model", create, ["What is 1 + 1? Say:"], seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    said = tokenizer("Say:" + ANSWER)["input_ids"]
    chain = said[-len(tokenizer(ANSWER)["input_ids"]) - 1 :] + [tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "a token has one successor"
    with torch.no_grad():
        # No layer adds anything, so a token's logits are those of its embedding: each is followed by the next.
        for name, param in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                param.zero_()
        embeddings = torch.nn.functional.normalize(model.model.embed_tokens.weight)
        model.model.embed_tokens.weight.copy_(embeddings)
        for token, successor in zip(chain[:-1], chain[1:], strict=True):
            model.lm_head.weight[successor] = embeddings[token] * 1.2  # times the norm's 8: a logit of 9.6
    model.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i}? Say:", "answer": "7" if i % 3 == 0 else "8"} for i in range(NUM_PROBLEMS)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _distill(folder: Path, out: Path, *options: str) -> int:
    arguments = [str(folder / "problems.jsonl"), "--model", str(folder / "model"), "--out", str(out), "--keep", "2"]
    sampling = ["--samples", "2", "--temperature", "1.0", "--max-tokens", "16", "--template", "none", "--workers", "1"]
    return main(["distill", *arguments, *sampling, "model.precision=fp32", *options])


def _killed_at(folder: Path, out: Path, file: str) -> None:
    """Kill this process as soon as the file exists."""

    def kill() -> None:
        while not (out.with_name(out.name + ".teacher") / file).exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    _distill(folder, out)


def _samples(out: Path, count: int = 2) -> list[bytes]:
    return [(out.parent / f"{out.name}.teacher/responses/sample_{k}.jsonl").read_bytes() for k in range(count)]


def test_killed_and_resumed_or_on_two_ranks_nothing_is_lost_or_doubled(folder, tmp_path):
    whole = tmp_path / "whole.jsonl"
    assert run_ranks(_distill, 1, folder, whole) == [0]
    samples = [json.loads(line) for file in _samples(whole) for line in file.splitlines()]
    assert Counter(row["id"] for row in samples) == {f"row-{i}": 2 for i in range(NUM_PROBLEMS)}
    assert len({row["seed"] for row in samples}) == len(samples)
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    right = {row["id"] for row in samples if row["verdict"] == "correct"}
    assert {row["id"].split("/")[0] for row in rows} == right and len(right) > NUM_PROBLEMS / 3 / 2
    assert {row["answer"] for row in rows} == {"7"} and all("\\boxed{7}" in row["response"] for row in rows)
    (source,) = {row["source"] for row in rows}
    assert source.startswith(f"{folder}/model (xxh3 ") and source.endswith(", hf engine)")

    killed = tmp_path / "killed.jsonl"
    with pytest.raises(AssertionError, match="died without an answer"):
        run_ranks(_killed_at, 1, folder, killed, "responses/sample_1.jsonl")
    assert not killed.exists()
    record = tmp_path / "killed.jsonl.teacher/responses/sample_1.jsonl"
    record.write_bytes(record.read_bytes() + b'{"torn')
    assert run_ranks(_distill, 2, folder, killed) == [0, 0]
    assert _samples(killed) == _samples(whole)
    assert killed.read_bytes() == whole.read_bytes()


def _asked(folder: Path, out: Path, samples: str) -> dict[int, int]:
    """How many prompts the engine is asked for so many samples of at once."""
    prompts_of, generate = Counter(), HfEngine.generate

    def recorded(engine, prompts, params, seeds):
        prompts_of[params.n] += len(prompts)
        return generate(engine, prompts, params, seeds)

    with patch.object(HfEngine, "generate", recorded):
        assert _distill(folder, out, "--samples", samples) == 0
    return dict(prompts_of)


def test_all_samples_of_a_prompt_are_asked_for_at_once_and_later_only_new_ones(folder, tmp_path):
    out, at_once = tmp_path / "sft.jsonl", tmp_path / "at_once.jsonl"
    assert run_ranks(_asked, 1, folder, out, "2") == [{2: NUM_PROBLEMS}]
    assert run_ranks(_asked, 1, folder, out, "5") == [{3: NUM_PROBLEMS}]
    assert run_ranks(_asked, 1, folder, out, "4") == [{}]
    assert run_ranks(_asked, 1, folder, at_once, "5") == [{5: NUM_PROBLEMS}]
    assert _samples(out, 5) == _samples(at_once, 5)


def _refusal(folder: Path, out: Path, *options: str) -> tuple[int, str]:
    told = io.StringIO()
    with redirect_stderr(told):
        status = _distill(folder, out, *options)
    return status, told.getvalue()


def test_answers_of_other_settings_are_not_mixed_in(folder, tmp_path):
    out = tmp_path / "sft.jsonl"
    (tmp_path / "sft.jsonl.teacher").mkdir()
    (tmp_path / "sft.jsonl.teacher/settings.json").write_text('{"temperature": 0.5}')
    ((status, told),) = run_ranks(_refusal, 1, folder, out)
    assert status == 2 and "temperature was 0.5 and is 1.0" in told and not out.exists()


def test_settings_of_an_engine_are_refused_with_an_endpoint(folder, tmp_path):
    status, told = _refusal(folder, tmp_path / "sft.jsonl", "--endpoint", "http://localhost:1/v1")
    assert status == 2 and "mean nothing to an endpoint" in told


@pytest.mark.vllm
def test_the_teacher_may_answer_through_vllm_and_each_example_says_so(folder, tmp_path):
    out = tmp_path / "sft.jsonl"
    assert run_ranks(_distill, 1, folder, out, "rollout.engine=vllm") == [0]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) > NUM_PROBLEMS / 3 / 2 and all("\\boxed{7}" in row["response"] for row in rows)
    (source,) = {row["source"] for row in rows}
    assert source.startswith(f"{folder}/model (xxh3 ") and source.endswith(", vllm engine)")
