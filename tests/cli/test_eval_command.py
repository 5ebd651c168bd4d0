"""`simplerl eval` with a small model: resumed, on several ranks, and refused."""

import io
import json
import shutil
from contextlib import redirect_stderr

import pytest

from nemo_simplerl.cli.eval import run
from nemo_simplerl.config.schema import CreateConfig
from nemo_simplerl.trainer.setup.prepare import create_model
from support.ranks import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    sizes = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_query_groups": 1, "ffn_hidden_size": 64}
    create = CreateConfig(
        **sizes, vocab_size=600, max_position_embeddings=256, share_embeddings_and_output_weights=True
    )
    create_model(folder / "model", create, ["What is 1 + 1?"] * 4, seed=1)
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}", "idx": i} for i in range(140)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _evaluate(folder, out, *options):
    arguments = [str(folder / "model"), "--data", str(folder), "--out", str(out), "--benchmarks", "gsm8k"]
    return run([*arguments, "--template", "none", "--max-tokens", "8", "model.precision=fp32", *options])


def _files(out):
    return [(out / name).read_bytes() for name in ("responses/gsm8k.jsonl", "results.json", "results.md")]


@pytest.mark.slow
def test_killed_and_resumed_or_on_two_or_four_ranks_the_numbers_are_the_same(folder, tmp_path):
    assert run_ranks(_evaluate, 1, folder, tmp_path / "whole") == [0]
    whole = _files(tmp_path / "whole")
    figures = json.loads(whole[1])["benchmarks"]["gsm8k"]
    assert (figures["problems"], figures["truncated_share"]) == (140, 1.0)

    shutil.copytree(tmp_path / "whole", tmp_path / "torn")  # as a kill leaves it: a chunk, and a part of the next
    text = (tmp_path / "torn/responses/gsm8k.jsonl").read_bytes()
    (tmp_path / "torn/responses/gsm8k.jsonl").write_bytes(b"".join(text.splitlines(keepends=True)[:133]) + b'{"torn')
    (tmp_path / "torn/results.json").unlink()
    assert run_ranks(_evaluate, 1, folder, tmp_path / "torn") == [0]
    assert _files(tmp_path / "torn") == whole

    for world_size in (2, 4):
        out = tmp_path / f"on_{world_size}"
        assert run_ranks(_evaluate, world_size, folder, out) == [0] * world_size
        assert _files(out) == whole


@pytest.mark.slow
def test_answers_to_another_file_are_not_taken_for_answers_to_this_one(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data/aime24.jsonl").write_text('{"question": "What is 2 + 2?", "answer": "4"}\n' * 2)
    asked = (tmp_path / "data", tmp_path / "out", "--limit", "2")
    assert run_ranks(_evaluate, 1, *asked) == [0]
    assert run_ranks(_evaluate, 1, *asked, "--benchmarks", "aime24") == [0]
    assert list(json.loads((tmp_path / "out/results.json").read_text())["benchmarks"]) == ["aime24", "gsm8k"]
    file = tmp_path / "data/gsm8k.jsonl"
    file.write_text(file.read_text().replace("#### 1", "#### 2", 1))
    ((status, told),) = run_ranks(_refusal, 1, *asked)
    assert status == 2 and "gsm8k_problems_xxh3 was" in told
    ((status, told),) = run_ranks(_refusal, 1, *asked, "--benchmarks", "aime24", "rollout.stop_token_ids=[7]")
    assert status == 2 and "stop_token_ids was" in told


def _refusal(folder, out, *options):
    told = io.StringIO()
    with redirect_stderr(told):
        status = _evaluate(folder, out, *options)
    return status, told.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "2", "--samples", "2"], "n_samples_per_prompt was 1 and is 2"),
        (["--max-tokens", "256"], "leaves no room for a prompt in 256 positions"),
        (["--max-tokens", "250"], "gsm8k: 140 of 140 prompts have more than 6 tokens"),
        (["--benchmarks", "gsm9k"], "no benchmark 'gsm9k'"),
        (["rollout.engin=hf"], "Did you mean rollout.engine?"),
    ],
)
def test_other_settings_and_input_that_cannot_be_used_are_told_in_words(folder, tmp_path, options, message):
    (tmp_path / "settings.json").write_text('{"n_samples_per_prompt": 1, "limit": null}')
    ((status, told),) = run_ranks(_refusal, 1, folder, tmp_path, *options)
    assert status == 2
    assert message in told
    assert not (tmp_path / "results.json").exists()
