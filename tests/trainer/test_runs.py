"""Whole runs of a tiny model: the same twice, the same when stopped and resumed, and wrong input told in words."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import load
from nemo_simplerl.config.run_dir import check_run_dir
from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.model.conversion.verify import different_tensors
from nemo_simplerl.model.source import open_source
from nemo_simplerl.report.page import build_page
from nemo_simplerl.report.read import warnings_of
from nemo_simplerl.trainer.start import start_training
from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books, leave_bad_updates, train_here

FORWARD = "forward_micro_batch_size"
BF16 = ["model.precision=bf16", "algo.ratio_tolerance=null"]
# Rounding to bfloat16 happens inside a micro-batch, sums over them are float32: of one sample, they are layout-proof.
ONE_BY_ONE = [f"{role}.{size}=1" for role in ("actor", "critic") for size in ("micro_batch_size", FORWARD)]


def _train(run_dir: Path, overrides: list[str], *more: str, world_size: int = 1) -> None:
    run_ranks(train_here, world_size, [*SMALL, f"trainer.run_dir={run_dir}", *overrides, *more])


def _continued(run_dir: Path, step: int, target: Path) -> Path:
    """The run as it stood after `step`, in another folder."""
    shutil.copytree(run_dir, target)
    for path in (target / "checkpoints").glob("step_*"):
        if path.name != f"step_{step:06d}":
            shutil.rmtree(path)
    (target / "checkpoints/latest").write_text(f"step_{step:06d}\n")
    return target


def _metrics(run_dir: Path, after: int) -> list[dict[str, float]]:
    """Lines of the steps after `after`, without timings and what tells of rounding and of buckets alone."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    of_layout = ("time/", "memory/", "consistency/", "refit/buckets", "actor/first_ratio", "actor/ratio_deviation")
    return [
        {key: value for key, value in line.items() if not key.startswith(of_layout)}
        for line in lines
        if line["step"] > after
    ]


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, ["algo.critic_warmup_steps=1"]),
        (2, ["actor.use_distributed_optimizer=true"]),
        (2, ["actor.tensor_model_parallel_size=2", "model.precision=bf16", "algo.ratio_tolerance=null"]),
    ],
    ids=["one rank", "DP2 with the distributed optimizer", "TP2 in bf16"],
)
def test_a_rerun_is_identical_and_a_stopped_run_resumes_to_the_same_end(tmp_path, data, world_size, layout):
    _train(tmp_path / "whole", data, *layout, world_size=world_size)
    _train(tmp_path / "again", data, *layout, world_size=world_size)
    _train(tmp_path / "stopped", data, *layout, "trainer.stop_after_step=2", world_size=world_size)
    assert not (tmp_path / "stopped/summary.json").exists()
    _train(tmp_path / "stopped", data, *layout, world_size=world_size)
    for other in ("again", "stopped"):
        assert books(tmp_path / other) == books(tmp_path / "whole")
        assert_same_state(tmp_path / "whole", tmp_path / other)
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert summary["steps"] == 4
    assert {"accuracy_before", "accuracy_after", "format_rate_after", "train_seconds"} <= summary.keys()


def test_engine_and_trainer_agree_on_log_probabilities_and_the_first_ratio_is_one(tmp_path, data):
    _train(
        tmp_path / "run",
        data,
        "actor.tensor_model_parallel_size=2",
        "algo.ratio_tolerance=1e-5",
        world_size=2,
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines[1:]:
        assert line["actor/first_ratio_deviation"] < 1e-5
        assert line["consistency/logprob_diff_max"] < 1e-4
        assert line["rollout/weight_version"] == line["step"] - 1
    # A random model boxes nothing: at its first step the run and its report say that there is nothing to learn.
    assert any(
        " step 1: every response of the step earned the same reward" in text for text in warnings_of(tmp_path / "run")
    )
    assert "step 1: every response of the step earned the same reward (no_answer)" in build_page([tmp_path / "run"])


def test_actor_and_critic_come_out_in_hugging_face_form_and_the_critic_goes_in_again(tmp_path, data):
    _train(tmp_path / "run", data, "trainer.max_steps=1", "actor.tensor_model_parallel_size=2", world_size=2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf/actor")
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False).shape[1] > 3
    assert AutoTokenizer.from_pretrained(tmp_path / "run/hf/actor").eos_token == "<|endoftext|>"
    critic = tmp_path / "run/hf/critic"
    trained = load_file(critic / "model.safetensors")["score.weight"]
    _train(
        tmp_path / "next",
        data,
        "trainer.max_steps=1",
        "critic.optim.lr=0",
        "critic.optim.min_lr=0",
        f"critic.path={critic}",
    )
    assert torch.equal(load_file(tmp_path / "next/hf/critic/model.safetensors")["score.weight"], trained)


def test_a_finished_run_has_nothing_left_to_do(tmp_path, data):
    _train(tmp_path / "run", data, "trainer.max_steps=1")
    before = books(tmp_path / "run")
    _train(tmp_path / "run", data, "trainer.max_steps=1")
    assert books(tmp_path / "run") == before


def test_a_run_that_is_told_to_go_on_beyond_its_end_exports_and_sums_up_anew(tmp_path, data):
    run_dir = tmp_path / "run"
    _train(run_dir, data, "trainer.max_steps=1")
    at_first = load_file(run_dir / "hf/actor/model.safetensors")
    beyond = ["trainer.max_steps=2", "trainer.resume_allow=[trainer.max_steps]"]
    _train(run_dir, data, *beyond, "trainer.stop_after_step=1")
    assert not (run_dir / "summary.json").exists()
    (run_dir / "hf/actor").rename(tmp_path / "kept")
    (run_dir / "hf/actor").symlink_to(tmp_path / "kept")
    leave_bad_updates(run_dir, "step_000001_actor_1", "step_000002_critic_1")
    _train(run_dir, data, *beyond)
    assert [path.name for path in (run_dir / "bad_updates").iterdir()] == ["step_000001_actor_1_rank0.pt"]
    assert not (run_dir / "hf/actor").is_symlink() and (tmp_path / "kept/model.safetensors").exists()
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 2
    exported, trained = (open_source(run_dir / place) for place in ("hf/actor", "checkpoints/step_000002"))
    assert different_tensors(exported, trained, None) == []
    now = load_file(run_dir / "hf/actor/model.safetensors")
    assert any(not torch.equal(now[name], at_first[name]) for name in now)


def test_a_run_directory_of_other_settings_is_refused(tmp_path, data):
    overrides = [*SMALL, *data, f"trainer.run_dir={tmp_path}", "trainer.max_steps=1"]
    run_ranks(train_here, 1, overrides)
    check_run_dir(load([*overrides, "trainer.save_every=1"], world_size=1))
    with pytest.raises(ConfigErrors, match=r"algo.gamma=0.5, but .* was begun with 1.0") as raised:
        check_run_dir(load([*overrides, "algo.gamma=0.5", "trainer.seed=9"], world_size=1))
    assert len(raised.value.problems) == 2
    with pytest.raises(ValueError, match="trainer.resume=false"):
        start_training(load([*overrides, "trainer.resume=false"], world_size=1))


@pytest.mark.parametrize(
    ("saved", "resumed", "close"),
    [
        (
            (4, ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"]),
            (2, ["critic.micro_batch_size=2"]),
            {"rel": 2e-4, "abs": 1e-5},
        ),
        (
            (2, ["actor.use_distributed_optimizer=true", *BF16, *ONE_BY_ONE]),
            (2, ["actor.pipeline_model_parallel_size=2", *BF16, *ONE_BY_ONE]),
            {"rel": 2e-3, "abs": 1e-4},  # a weight may round the other way, which moves a gradient's norm by 8e-4
        ),
    ],
    ids=["TP2 x PP2 to DP2", "bf16, DP2 with the distributed optimizer to PP2"],
)
def test_another_layout_resumes_to_the_same_metrics(tmp_path, data, saved, resumed, close):
    _train(tmp_path / "whole", data, "trainer.save_every=2", *saved[1], world_size=saved[0])
    check_run_dir(load([*SMALL, *data, f"trainer.run_dir={tmp_path / 'whole'}", *resumed[1]], world_size=resumed[0]))
    turned = _continued(tmp_path / "whole", 2, tmp_path / "turned")
    _train(turned, data, *resumed[1], world_size=resumed[0])
    found, expected = _metrics(turned, after=2), _metrics(tmp_path / "whole", after=2)
    assert [line["step"] for line in found] == [3, 4]
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, **close)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["rollout.max_prompt_tokens=5"], "no prompt is left"),
        (["rollout.max_prompt_tokens=30", "data.overlong_prompts=error"], "have more than 30 tokens"),
        (["data.rollout_batch_size=32"], "a step takes 32 prompts and there are 20"),
        (["data.answer_field=gold"], "without a 'gold'"),
        (["model.create.vocab_size=512", "model.tokenizer=TOKENIZER"], "the model's vocabulary is 512"),
    ],
)
def test_input_that_cannot_be_used_is_told_in_words(tmp_path, data, change, message):
    words = ["".join(letters) for letters in product("abcdefgh", repeat=4)]
    assert len(build_tokenizer(words, 700, tmp_path / "t")) > 512
    change = [text.replace("TOKENIZER", str(tmp_path / "t")) for text in change]
    with pytest.raises(AssertionError, match=message):
        _train(tmp_path / "run", data, *change)
