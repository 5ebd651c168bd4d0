"""Experiments of one's own: named by path or found in --config-dir, and their mistakes told with their names."""

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, load

OWN = "defaults: [quickstart, _self_]\nalgo: {gamma: 0.5}\ntrainer: {seed: 8}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(overrides, world_size=1)
    return caught.value.problems


def test_a_file_is_named_by_its_path_and_lies_over_the_experiment_that_it_starts_from(folder):
    place = folder / "José (1)"
    place.mkdir()
    (place / "a=b.yaml").write_text(OWN)
    config = compose([f"experiment={place}/a=b.yaml", "trainer.seed=9"])
    assert (config.algo.gamma, config.trainer.seed, config.data.generate) == (0.5, 9, "arithmetic")


@pytest.mark.parametrize("folder_of_file", [".", "experiment"])
@pytest.mark.parametrize("option", [["--config-dir", "mine"], ["--config-dir=mine"]])
def test_a_folder_of_ones_own_is_searched_beside_conf(folder, folder_of_file, option):
    (folder / "mine" / folder_of_file).mkdir(parents=True)
    (folder / "mine" / folder_of_file / "short.yaml").write_text(OWN)
    assert compose([*option, "experiment=short"]).algo.gamma == 0.5
    assert compose([*option, "experiment=quickstart"]).algo.gamma == 1.0
    assert compose([*option, "experiment=short.yaml"]).algo.gamma == 0.5
    assert "experiment=short" in problems_of(*option, "experiment=shrt")[0]


def test_a_file_starts_from_one_beside_it_and_a_group_has_files_of_ones_own(folder):
    (folder / "base.yaml").write_text(f"# @package _global_\n{OWN}")
    (folder / "mine.yml").write_text("defaults: [base, _self_]\nalgo: {kl_coef: 0.5}\n")
    config = compose(["experiment=./mine.yml"])
    assert (config.algo.gamma, config.algo.kl_coef) == (0.5, 0.5)
    (folder / "reward").mkdir()
    (folder / "reward/harsh.yaml").write_text("defaults: [default, _self_]\nincorrect: -0.75\n")
    assert compose(["--config-dir", ".", "experiment=quickstart", "reward=harsh"]).reward.incorrect == -0.75


def test_mistakes_in_the_file_are_told_with_its_name_and_others_without(folder):
    (folder / "mine.yaml").write_text(
        "defaults: [quickstart, _self_]\nalgo: {gama: 1, gae_lambda: x}\nalgoo: {}\ntrainer: {keep_last: -1}\n"
        "sft: {optim: {lr: 1}}\nmodel: {create: {num_layer: 2}}\ncritic: {micro_batch_size: 0}\n"
    )
    told = problems_of("experiment=./mine.yaml", "rollout.top_p=2", "critic.micro_batch_size=true")
    of_file = [problem.removeprefix("mine.yaml: ") for problem in told if problem.startswith("mine.yaml: ")]
    assert {problem.split()[0].split("=")[0] for problem in of_file} == {
        "algo.gama",
        "algo.gae_lambda",
        "algoo",
        "trainer.keep_last",
        "model.create.num_layer",
    }
    others = sorted(problem.split("=")[0] for problem in told if not problem.startswith("mine.yaml: "))
    assert others == ["critic.micro_batch_size", "rollout.top_p"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"algo: [\n", "mine.yaml: not YAML (line 2: "),
        (b"algo: {}\nalgo: {}\n", "mine.yaml: found duplicate key algo"),
        (b"version https://git-lfs.github.com/spec/v1\n", "mine.yaml is a pointer of git-lfs"),
        (b"- a\n", "mine.yaml: holds no keys"),
        (b"\xff\xfe\x00", "mine.yaml begins as utf-16-le and is none"),
        (b"defaults: [quikstart]\n", "mine.yaml: In 'mine.yaml': Could not load 'experiment/quikstart'"),
        (b"defaults: 3\n", "mine.yaml: "),
        (b"defaults: [mine, _self_]\n", "mine.yaml: starts from itself"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(folder, content, told):
    (folder / "mine.yaml").write_bytes(content)
    (problem,) = problems_of("experiment=./mine.yaml")
    assert told in problem


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["experiment=./none.yaml"], "is a path to no file (looked for"),
        (["experiment=./mine.json"], "is a path to no .yaml file"),
        (["experiment=."], "experiment=./NAME.yaml"),
        (["--config-dir", "none", "experiment=quickstart"], "--config-dir none: there is no folder"),
        (["experiment=quickstart", "--config-dir"], "there is no folder"),
    ],
)
def test_a_file_or_folder_that_is_not_there_is_one_problem(overrides, told):
    (problem,) = problems_of(*overrides)
    assert told in problem


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder):
    (folder / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + OWN.replace("\n", "\r\n").encode())
    assert compose(["experiment=./mine.yaml"]).algo.gamma == 0.5
