"""Checkpoints of roles that live on ranks of their own: saved in one placement, loaded in any other."""

import functools
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_simplerl.config.schema import Config
from nemo_simplerl.files import NotSaved
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.archive import list_files
from nemo_simplerl.model.formats.torch_dist import read_index
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import destroy_mesh, leave_together
from nemo_simplerl.trainer.guard.faults import Faults, installed
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.manifest import read_manifest
from nemo_simplerl.trainer.saving.position import TrainingPosition
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.setup.world import World, world_of
from support.ranks import run_ranks
from support.tiny import learner_of, save_hf_model, small_config

# Ranks, tensor ranks of the actor and of the critic, placement of actor, critic and engine.
PLACEMENTS = {
    "shared": (2, 2, 2, None),
    "critic apart": (4, 2, 2, ("0-1", "2-3", "0-1")),
    "all apart": (4, 1, 2, (0, "1-2", 3)),
}
_CHAIN = ["shared", "critic apart", "all apart", "shared"]


@functools.cache
def _config(model: str, placement: str) -> Config:
    _, actor_size, critic_size, places = PLACEMENTS[placement]
    sizes = [{"tensor_model_parallel_size": size} for size in (actor_size, critic_size)]
    config = small_config(model, sizes[0], {}, sizes[1])
    named = dict(zip(("actor", "critic", "engine"), places or (None, None, None), strict=True))
    return replace(config, placement=replace(config.placement, **named))


def _learners(config: Config, model: str, world: World) -> dict[str, Learner]:
    """Those that live on this rank."""
    seeds = {"actor": None, "critic": config.trainer.seed}
    return {
        role: learner_of(config, model, config.actor.optim, mesh, total_updates=9, critic_seed=seeds[role])
        for role, mesh in (("actor", world.actor), ("critic", world.critic))
        if mesh.is_member
    }


def _update(learner: Learner, hf: dict) -> None:
    """A step on gradients that are a function of the parameter alone."""
    is_critic = learner.gpt.is_critic
    for local_name, param in learner.gpt.named_parameters():
        name = hf_map.full_name(local_name, layer_offset(learner.gpt))
        entry, shape = hf_map.mapping(name, critic=is_critic), hf_map.param_shape(name, hf, critic=is_critic)
        full = torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))
        mesh = learner.mesh
        param.main_grad.copy_(hf_map.shard(entry.kind, full, entry.tp_dim, mesh.tp_rank, mesh.tp_size))
    learner.optimizer.step()
    learner.updates += 1


def _saver(folder: Path, world: World, model: str) -> Saver:
    keep = checkpoint.Retention(last=9, every=0, best=None)
    return Saver(folder, world.actor, model_folder=lambda role: Path(model), keep=keep, in_background=True)


def _save(saver: Saver, step: int, learners: dict[str, Learner]) -> None:
    facts = {"weight_version": step, "evaluation": {}, "config_xxh3": ""}
    saver.save(learners, checkpoint.manifest_of(TrainingPosition(step), checkpoint.facts_of(learners), **facts))
    saver.finish()


def _hand_on(model: str, placement: str, source: Path | None, target: Path) -> str:
    """Save what another placement saved, or two updates of the critic and one of the actor; the layouts in words."""
    config = _config(model, placement)
    world = world_of(config)
    learners = _learners(config, model, world)
    if source is None:
        hf = json.loads((Path(model) / "config.json").read_text())
        for role, learner in learners.items():
            for _ in range({"actor": 1, "critic": 2}[role]):
                _update(learner, hf)
    else:
        checkpoint.load(checkpoint.find_intact(source, world.actor), learners)
    with closing(_saver(target, world, model)) as saver:
        _save(saver, 1, learners)
    layouts = {role: facts.layout for role, facts in checkpoint.facts_of(learners).items()}
    leave_together()
    destroy_mesh()
    return checkpoint.layouts_in_words(layouts)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def chain(model, tmp_path_factory) -> tuple[list[Path], list[list[str]]]:
    """Checkpoints that one placement after the other loaded and saved again, and each rank's layouts in words."""
    folder = tmp_path_factory.mktemp("chain")
    targets = [folder / str(number) for number in range(len(_CHAIN))]
    words = [
        run_ranks(_hand_on, PLACEMENTS[placement][0], model, placement, source, target)
        for placement, source, target in zip(_CHAIN, [None, *targets], targets, strict=False)
    ]
    return [target / "step_000001" for target in targets], words


def _files_of(folder: Path) -> dict[str, bytes]:
    names = [path for role in ("actor", "critic") for path in (folder / role).rglob("*") if path.is_file()]
    # Beside the weights stands where the tokenizer will be found, which is the checkpoint's own folder.
    return {str(path.relative_to(folder)): path.read_bytes() for path in names if path.name != "model_config.yaml"}


def _stored(folder: Path, role: str) -> dict[str, Tensor]:
    names = ("model_weights", "optimizer")
    found = {name: read_index(list_files(folder / role), name) for name in names}
    return {f"{name} {key}": tensor.read() for name in names for key, tensor in found[name].items()}


def test_a_role_that_keeps_its_layout_is_saved_in_the_same_files_wherever_it_lives(chain):
    (shared, apart, _, again), _ = chain
    expected = _files_of(shared)
    assert {"actor/optimizer/__1_0.distcp", "critic/optimizer/__1_0.distcp", "critic/optimizer/.metadata"} <= set(
        expected
    )
    for folder in (apart, again):
        found = _files_of(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []


def test_another_layout_on_other_ranks_holds_the_same_numbers(chain):
    (shared, _, apart, _), _ = chain
    weights = {role: (_stored(shared, role), _stored(apart, role)) for role in ("actor", "critic")}
    for one, other in weights.values():
        keys = [key for key in one if key.startswith("model_weights") and "_extra_state" not in key]
        assert keys and all(torch.equal(one[key], other[key]) for key in keys)
    one, other = weights["critic"]  # which has two tensor ranks in both
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_manifest_and_the_words_for_it_speak_of_every_role(chain):
    folders, words = chain
    manifest = read_manifest(folders[2])
    assert (manifest.updates, manifest.skipped) == ({"actor": 1, "critic": 2}, {"actor": 0, "critic": 0})
    assert list(manifest.layout.values()) == [1, 1, 1, 0]
    assert list(manifest.layouts["critic"].values()) == [2, 1, 1, 1]
    assert words[0] == ["TP2 x PP1 x DP1"] * 2
    assert words[2] == ["actor TP1 x PP1 x DP1 on rank 0, critic TP2 x PP1 x DP1 on ranks 1-2"] * 4
    # Two roles of one layout on ranks of their own; and a manifest of an earlier version, which names no ranks.
    apart = {
        role: checkpoint.layout_of(Grid(ranks, 1, 1)) for role, ranks in (("actor", range(2)), ("critic", range(2, 4)))
    }
    assert checkpoint.layouts_in_words(apart) == (
        "actor TP1 x PP1 x DP2 on ranks 0-1, critic TP1 x PP1 x DP2 on ranks 2-3"
    )
    assert checkpoint.layouts_in_words({"actor": {"tp": 2, "pp": 1, "dp": 4}}) == "TP2 x PP1 x DP4"


def _fail_and_save_again(model: str, folder: Path) -> list[str]:
    config = _config(model, "all apart")
    world = world_of(config)
    learners = _learners(config, model, world)
    failures = []
    with closing(_saver(folder, world, model)) as saver:
        faults = Faults.parse("fail@checkpoint.write#1,rank=2", world.rank)
        with installed(faults), pytest.raises(NotSaved) as raised:
            _save(saver, 1, learners)
        failures.append(str(raised.value))
        _save(saver, 1, learners)
    leave_together()
    destroy_mesh()
    return failures


def test_a_rank_of_the_critic_that_cannot_write_fails_the_save_on_all_and_the_next_succeeds(model, tmp_path):
    for (failure,) in run_ranks(_fail_and_save_again, 4, model, tmp_path):
        assert "could not be saved: rank 2: No space left on device" in failure
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_000001"]
