"""`simplerl train --help`: the experiments, the sections, and what each key means."""

import dataclasses
import re

import pytest

from nemo_simplerl.cli.main import main
from nemo_simplerl.config.build import fitting_types, keys_of
from nemo_simplerl.config.schema import Config


def told(capsys, *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "sft"])
def test_help_lists_the_experiments_with_a_line_each_and_the_sections_with_their_keys(capsys, command):
    text = told(capsys, command, "--help")
    assert text.startswith(f"usage: simplerl {command} ")
    assert "  gspo          GSPO (Zheng 2025, arXiv:2507.18071): GRPO with " in text
    assert re.search(r"^  quickstart +The whole recipe on a laptop's CPU", text, re.M)
    for field in dataclasses.fields(Config):
        assert f"\n  {field.name} " in text
    assert "kl_coef" in text and "optim.lr_decay_style" in text


def test_help_on_a_section_tells_of_each_key_its_meaning_type_and_default(capsys):
    text = told(capsys, "train", "--help", "algo")
    assert (
        "algo.kl_estimator  (k1, k2, k3, abs; default k1)\n"
        "    of the divergence from the reference policy, token by token"
    ) in text
    # A comment of several lines above its key, and one of an experiment's own values.
    text = told(capsys, "train", "--help", "actor.micro_batch_tokens", "trainer.seed")
    assert "padded rows, as many as micro_batch_size says." in " ".join(text.split())
    assert "trainer.seed  (an integer; default 1)" in text and "algo" not in text


def test_the_defaults_are_those_of_the_experiment_that_is_named(capsys, tmp_path):
    assert "data.train_path  (a string; no default)" in told(capsys, "train", "--help", "data")
    assert "rollout.n_samples_per_prompt  (an integer; default 4)" in told(
        capsys, "train", "experiment=quickstart", "--help", "rollout"
    )
    (tmp_path / "mine.yaml").write_text("# My own.\nrollout: {n_samples_per_prompt: 3}\n")
    assert "default 3)" in told(capsys, "train", "-h", "rollout", f"experiment={tmp_path}/mine.yaml")
    assert "  mine " in told(capsys, "train", "--config-dir", str(tmp_path), "--help")
    assert "My own." in told(capsys, "train", f"--config-dir={tmp_path}", "--help")


def test_every_key_is_told_of_with_a_meaning(capsys):
    lines = told(capsys, "train", "--help", "all").splitlines()
    keys = [line.split("  (")[0] for line in lines if not line.startswith(" ")]
    leaves = [key for key in keys_of(Config) if "." in key and fitting_types(Config, key) not in _SECTIONS]
    assert keys == leaves
    assert all(lines[at + 1].strip() for at, line in enumerate(lines) if not line.startswith(" "))


_SECTIONS = [
    (field.type,)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.type)
    if dataclasses.is_dataclass(field.type)
]


def test_a_section_that_is_none_is_told_the_nearest(capsys):
    assert main(["train", "--help", "crtic"]) == 2
    assert "Did you mean critic" in capsys.readouterr().err
