"""`simplerl eval` with a small model: resumed, on several ranks, and refused."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr

import pytest

from nemo_simplerl.cli.main import main
from nemo_simplerl.config.schema import CreateConfig
from nemo_simplerl.eval.benchmarks import load_all
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
    return main(["eval", *arguments, "--template", "none", "--max-tokens", "8", "model.precision=fp32", *options])


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


@pytest.mark.slow
def test_a_file_of_ones_own_is_measured_beside_a_benchmark_and_its_overlong_problems_count_as_wrong(folder, tmp_path):
    rows = [{"problem": f"What is {i} + 1?" + " and" * (300 if i == 1 else 0), "solution": i + 1} for i in range(4)]
    (tmp_path / "my set.json").write_text(json.dumps(rows))
    own = ("--data", str(tmp_path / "my set.json"), "--question", "problem", "--answer", "solution")
    out = tmp_path / "out"
    assert run_ranks(_evaluate, 1, folder, out, "--limit", "3", *own) == [0]
    results = json.loads((out / "results.json").read_text())["benchmarks"]
    assert list(results) == ["gsm8k", "my set"]
    assert (results["my set"]["problems"], results["my set"]["unanswered"]) == (3, 1)
    answered = [json.loads(line)["id"] for line in (out / "responses/my set.jsonl").read_text().splitlines()]
    assert answered == ["my set/row-0#0", "my set/row-2#2"]
    told = (out / "results.md").read_text()
    assert "| my set    | 3 " in told and told.endswith("\nSampled by the hf engine, fp32.\n")


def _refusal(folder, out, *options):
    told = io.StringIO()
    with redirect_stderr(told):
        status = _evaluate(folder, out, *options)
    return status, told.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "2", "--samples", "2", "--temperature", "1"], "n_samples_per_prompt was 1 and is 2"),
        (["--max-tokens", "256"], "leaves no room for a prompt in 256 positions"),
        (["--max-tokens", "250"], "gsm8k: 140 of 140 prompts have more than 6 tokens"),
        (["rollout.engin=hf"], "Did you mean rollout.engine"),
    ],
)
def test_other_settings_and_input_that_cannot_be_used_are_told_in_words(folder, tmp_path, options, message):
    (tmp_path / "settings.json").write_text('{"n_samples_per_prompt": 1, "limit": null}')
    ((status, told),) = run_ranks(_refusal, 1, folder, tmp_path, *options)
    assert status == 2
    assert message in told
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "DIR", "--benchmarks", "gsm9k"], "no benchmark 'gsm9k'"),
        (["--data", "DIR", "--samples", "4"], "--samples 4 at --temperature 0 are 4 equal responses"),
        (
            ["--data", "DIR", "--samples", "4", "--temperature", "1", "rollout.top_k=1"],
            "at rollout.top_k=1 are 4 equal",
        ),
        (["--data", "DIR", "--limit", "0"], "0 is no number of 1 or more; see simplerl eval --help"),
        (["--data", "DIR/none.jsonl"], "none.jsonl: there is no such file or folder"),
        (["--data", "DIR/own.jsonl", "--benchmarks", "gsm8k"], "--benchmarks needs the folder"),
        (["--data", "DIR/own.jsonl", "--data", "DIR/other/own.jsonl"], "there is another 'own'"),
        (["--data", "DIR/own.jsonl", "--answer", "level"], "1 row (1; counted from 0) without a 'level'"),
        (["--data", "DIR/own.jsonl", "--question", "q"], "without a 'q'"),
        (["--data", "DIR/own.jsonl", "rollout.engin=hf"], "Did you mean rollout.engine"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_before_torch_loads(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setitem(sys.modules, "nemo_simplerl.trainer.offline.benchmark", None)
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "own.jsonl").write_text(
            '{"question": "a", "answer": "1", "level": 1}\n{"question": "b", "answer": "2"}\n'
        )
    options = [option.replace("DIR", str(tmp_path)) for option in options]
    assert main(["eval", "model", "--out", "out", *options]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


def test_a_file_alone_needs_no_benchmarks_and_a_folder_alone_is_all_eight(tmp_path):
    (tmp_path / "own.csv").write_text("id,question,answer\n7,What is 1 + 1?,2\n")
    fields = {"question": "question", "answer": "answer", "id": "id"}
    found, notes = load_all([tmp_path / "own.csv"], None, fields)
    assert [problem.id for problem in found["own"]] == ["own/7#0"] and notes == []
    with pytest.raises(ValueError, match="aime24: neither"):
        load_all([tmp_path], None, fields)


@pytest.mark.vllm
def test_vllm_gives_the_answers_of_the_hf_engine_and_the_results_say_who_gave_them(tmp_path):
    """Greedy, in float32. Heads of 32, which vLLM has on a CPU."""
    sizes = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "num_query_groups": 1, "ffn_hidden_size": 64}
    create = CreateConfig(
        **sizes, vocab_size=600, max_position_embeddings=256, share_embeddings_and_output_weights=False
    )
    create_model(tmp_path / "model", create, ["What is 1 + 1?"] * 4, seed=1)
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}", "idx": i} for i in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {}
    for engine in ("hf", "vllm"):
        assert run_ranks(_evaluate, 1, tmp_path, tmp_path / engine, f"rollout.engine={engine}") == [0]
        lines = (tmp_path / engine / "responses/gsm8k.jsonl").read_text().splitlines()
        texts[engine] = [json.loads(line)["response"] for line in lines]
        assert f"Sampled by the {engine} engine, fp32." in (tmp_path / engine / "results.md").read_text()
    assert texts["vllm"] == texts["hf"] and len(set(texts["hf"])) > 1
