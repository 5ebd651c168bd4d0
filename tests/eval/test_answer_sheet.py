"""The responses to a benchmark: from a scripted engine, and from a small model through the command."""

import io
import json
import shutil
from contextlib import redirect_stderr

import pytest

from nemo_simplerl.cli.eval import run
from nemo_simplerl.config.schema import CreateConfig
from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.eval.results import averages, summarize
from nemo_simplerl.eval.sheet import answer_of, answer_sheet
from nemo_simplerl.reward.grade import judge
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.trainer.offline.benchmark import _other_settings
from nemo_simplerl.trainer.setup.prepare import create_model
from support.ranks import run_ranks

PROMPTS = [Prompt(Problem(f"p{i}", f"{i} + 1 = ?", str(i + 1), None, None), f"{i} + 1 = ?", (i,)) for i in range(10)]


def _sampling(n: int) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())


class Scripted:
    """Answers prompt (i,) rightly where `is_right(i, k)`; remembers which prompts it was asked."""

    unit_size, generates, weight_version = 4, True, 0

    def __init__(self, is_right):
        self.is_right, self.asked = is_right, []

    def generate(self, prompts, params, seeds):
        self.asked += [prompt[0] for prompt in prompts]
        return [
            Completion((1, 2), (0.0, 0.0), f"so \\boxed{{{i + 1 if self.is_right(i, k) else -5 - k}}}", "stop", 0, 7)
            for (i,) in prompts
            for k in range(params.n)
        ]


def _grade(items):
    return [Grade(judge(gold, response).verdict, "ok", 0.1) for gold, response in items]


def _sheet(engine, n=1, num_done=0):
    rows: list[dict] = []
    answer_sheet(
        PROMPTS, engine, _grade, _sampling(n), seed=1, chunk_size=4, num_done=num_done, keep=rows.extend, group=None
    )
    return rows


def test_an_engine_that_knows_every_answer_scores_100_and_one_that_knows_none_0():
    assert summarize(_sheet(Scripted(lambda i, k: True)))["accuracy"] == 1.0
    none = summarize(_sheet(Scripted(lambda i, k: False)))
    assert (none["accuracy"], none["format_rate"], none["problems"]) == (0.0, 1.0, 10)


def test_what_is_done_is_not_asked_again_and_the_rest_is_as_before():
    whole = _sheet(Scripted(lambda i, k: i % 3 == 0))
    engine = Scripted(lambda i, k: i % 3 == 0)
    rest = _sheet(engine, num_done=8)
    assert sorted(engine.asked) == [8, 9]
    assert rest == whole[8:]
    assert [row["question"] for row in whole] == list(range(10))


def test_several_samples_give_pass_at_k_and_a_vote():
    # Problems 0 to 4: two of four samples right, alike, the wrong ones unlike; the others: one of four.
    figures = summarize(_sheet(Scripted(lambda i, k: k < (2 if i < 5 else 1)), n=4))
    assert figures["accuracy"] == figures["pass@1"] == pytest.approx(0.375)
    assert figures["pass@2"] == pytest.approx((5 * (1 - 1 / 6) + 5 * (1 - 3 / 6)) / 10)
    assert figures["pass@4"] == 1.0
    assert figures["maj@4"] == 1.0  # a tie of one vote each goes to the first sample, which is right
    assert figures["samples"] == 4


def test_equal_answers_in_other_dress_are_one_candidate():
    assert answer_of(r"\boxed{ 1,234 }") == answer_of(r"\boxed{1,234}.")
    assert answer_of("no box") is None


def test_averages_are_over_the_five_and_the_eight_only_where_all_are_there():
    five = {name: {"accuracy": 0.5} for name in ("aime24", "math500", "amc23", "minerva_math", "olympiadbench")}
    assert averages(five) == {"average_5": 0.5}
    assert averages({"aime24": {"accuracy": 0.5}}) == {}


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


def test_benchmarks_may_be_added_to_a_folder_and_their_files_may_not_change(tmp_path):
    first, second = {"seed": 1, "amc23_problems_xxh3": "a"}, {"seed": 1, "math500_problems_xxh3": "b"}
    assert _other_settings(tmp_path, first) is None
    assert _other_settings(tmp_path, second) is None
    assert _other_settings(tmp_path, first | second) is None
    refusal = _other_settings(tmp_path, first | {"amc23_problems_xxh3": "c"})
    assert "amc23_problems_xxh3 was 'a' and is 'c'" in refusal and "Choose another --out" in refusal


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
