"""Checkpoints: any optimizer, any layout, any damage, a full disk, a kill at every step of a save."""

import functools
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nemo_simplerl.config.schema import Config
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.archive import list_files
from nemo_simplerl.model.formats.torch_dist import read_index
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.saving import checkpoint, optimizer_state, saver
from nemo_simplerl.trainer.saving.checkpoint import Retention, drop_old, find_intact, superseded
from nemo_simplerl.trainer.saving.manifest import FileFacts, Manifest, share_of, write_manifest
from nemo_simplerl.trainer.saving.position import TrainingPosition as At
from nemo_simplerl.trainer.saving.position import position_of
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.setup.world import mesh_of
from support.ranks import run_ranks
from support.tiny import learner_of, megatron_globals, save_hf_model, small_config

ALONE = SimpleNamespace(rank=0, world_size=1)  # all that looking at a folder asks of a mesh
KEEP_ALL = Retention(last=100, every=0, best=None)
KINDS = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Tied and untied, with a vocabulary that two tensor ranks pad."""
    folder = tmp_path_factory.mktemp("models")
    return {name: str(save_hf_model(folder / name, tied=name == "tied")) for name in ("tied", "untied")}


# Learners without passes: gradients are made up, a function of parameter and update that no layout changes.


def _gradient(name: str, shape: tuple[int, ...], update: int) -> Tensor:
    seed = sum(map(ord, name)) * 100 + update
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _update(learner: Learner, hf: dict, mesh: Mesh) -> None:
    for local_name, param in learner.gpt.named_parameters():
        name = hf_map.full_name(local_name, layer_offset(learner.gpt))
        is_critic = learner.gpt.is_critic
        is_tied = name == OUTPUT_LAYER and not is_critic and hf["tie_word_embeddings"]
        name = EMBEDDING if is_tied else name
        entry = hf_map.mapping(name, critic=is_critic)
        full = _gradient(name, hf_map.param_shape(name, hf, critic=is_critic), learner.updates)
        param.main_grad.copy_(hf_map.shard(entry.kind, full, entry.tp_dim, mesh.tp_rank, mesh.tp_size))
    for group in learner.optimizer.param_groups:
        group["lr"] = 1e-3
    learner.optimizer.step()
    learner.updates += 1


@functools.cache
def _config(model: str) -> Config:
    return small_config(model, {}, {})


def _learners(model: str, actor: dict, precision: str = "fp32", **changes) -> tuple[dict[str, Learner], dict, Mesh]:
    config = _config(model)
    optim = replace(config.actor.optim, clip_grad=0.0)
    config = replace(config, actor=replace(config.actor, **actor), model=replace(config.model, precision=precision))
    mesh = mesh_of(config.actor, config.trainer.distributed_timeout_s)
    learners = {
        role: learner_of(config, model, optim, mesh, total_updates=9, critic_seed=seed, **changes)
        for role, seed in (("actor", None), ("critic", config.trainer.seed))
    }
    return learners, json.loads((Path(model) / "config.json").read_text()), mesh


def _trained(model: str, actor: dict, precision: str = "fp32", updates: int = 2, **changes):
    learners, hf, mesh = _learners(model, actor, precision, **changes)
    for learner in learners.values():
        with learner.optimizer_on_device():
            for _ in range(updates):
                _update(learner, hf, mesh)
    return learners, hf, mesh


def _manifest(step: int, learners: dict[str, Learner], score: float = 0.0) -> Manifest:
    facts = {"weight_version": step, "evaluation": {"eval/accuracy": score}, "config_xxh3": ""}
    return checkpoint.manifest_of(At(step), checkpoint.facts_of(learners), **facts)


@contextmanager
def _saver(folder: Path, mesh: Mesh, model: str, *, in_background: bool = True, keep: Retention = KEEP_ALL):
    arguments = {"model_folder": lambda role: Path(model), "keep": keep, "in_background": in_background}
    with closing(Saver(folder, mesh, **arguments)) as saver:
        yield saver


def _save(folder: Path, step: int, learners: dict[str, Learner], mesh: Mesh, model: str) -> None:
    with _saver(folder, mesh, model) as saver:
        saver.save(learners, _manifest(step, learners))
        saver.finish()


def _steps(folder: Path) -> list[int]:
    return [place.steps for place in checkpoint.positions_on_disk(folder)]


def _leave() -> None:
    leave_together()
    destroy_mesh()


def _stored(path: Path, role: str) -> dict[str, Tensor]:
    return {key: tensor.read() for key, tensor in read_index(list_files(path / role), "optimizer").items()}


def _live(learners: dict[str, Learner]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that decides what comes next, of this rank."""
    for role, learner in learners.items():
        for name, param in learner.gpt.named_parameters():
            yield f"{role} {name}", param.detach()
        for inner in learner.optimizer.chained_optimizers:
            stepped = [param for group in inner.optimizer.param_groups for param in group["params"]]
            for place, param in enumerate(stepped):
                yield f"{role} stepped {place}", param.detach()
                for kind, tensor in inner.optimizer.state[param].items():
                    yield f"{role} {kind} {place}", tensor


def _assert_same(one: dict[str, Learner], other: dict[str, Learner]) -> None:
    expected = dict(_live(one))
    found = dict(_live(other))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def _resume_of_every_kind(folder: Path, model: str) -> None:
    for precision, is_distributed in KINDS:
        place, actor = folder / f"{precision}-{is_distributed}", {"use_distributed_optimizer": is_distributed}
        trained, hf, mesh = _trained(model, actor, precision)
        _save(place, 1, trained, mesh, model)
        fresh, _, _ = _learners(model, actor, precision)
        checkpoint.load(find_intact(place, mesh), fresh)
        _assert_same(trained, fresh)
        for learners in (trained, fresh):
            for learner in learners.values():
                _update(learner, hf, mesh)
        _assert_same(trained, fresh)
        names = {path.name for path in (place / "step_000001/actor/optimizer").iterdir()}
        assert ("__1_0.distcp" in names) == is_distributed
    _leave()


def test_every_kind_of_optimizer_goes_on_bit_for_bit_where_it_stopped(tmp_path, models):
    run_ranks(_resume_of_every_kind, 2, tmp_path, models["untied"])


def _leave_out_one(learner: Learner) -> None:
    def loss(hidden_SBH, micro):
        return head.output(learner.gpt, hidden_SBH).sum() * torch.nan, {}

    assert learner.update([TokenBatch(torch.arange(8).view(1, 8))], loss)["skipped"] == 1.0


def _resume_behind_a_bad_update(folder: Path, model: str) -> None:
    for made in (0, 2):
        trained, hf, mesh = _trained(model, {}, updates=made)
        for learner in trained.values():
            _leave_out_one(learner)
        _save(folder / str(made), 1, trained, mesh, model)
        fresh, _, _ = _learners(model, {})
        checkpoint.load(find_intact(folder / str(made), mesh), fresh)
        for learners in (trained, fresh):
            for learner in learners.values():
                assert (learner.updates, learner.steps) == (made + 1, made)
                _update(learner, hf, mesh)
        _assert_same(trained, fresh)
    _leave()


def test_an_update_left_out_is_no_step_of_adams_before_a_save_and_after(tmp_path, models):
    run_ranks(_resume_behind_a_bad_update, 1, tmp_path, models["untied"])


def _hand_on(folder: Path, models: dict[str, str]) -> None:
    """Both models, in two precisions: what TP2 x PP2 saved is loaded and saved by DP4, and that by TP2 x PP2 again."""
    split = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    for source, target, actor in ((None, "before", split), ("before", "between", {}), ("between", "after", split)):
        for name, precision in (("tied", "fp32"), ("untied", "bf16")):
            changes = {"use_distributed_optimizer": name == "untied"} | actor
            if source is None:
                learners, _, mesh = _trained(models[name], changes, precision, updates=1)
            else:
                learners, _, mesh = _learners(models[name], changes, precision)
                checkpoint.load(find_intact(folder / source / name, mesh), learners)
            _save(folder / target / name, 1, learners, mesh, models[name])
    assert megatron_globals() == []
    _leave()


def test_another_layout_reads_the_optimizer_state_and_hands_it_back_unchanged(tmp_path, models):
    run_ranks(_hand_on, 4, tmp_path, models)
    for name in models:
        hf = json.loads((Path(models[name]) / "config.json").read_text())
        for role in ("actor", "critic"):
            before, between, after = (
                _stored(tmp_path / when / name / "step_000001", role) for when in ("before", "between", "after")
            )
            assert before.keys() == after.keys()
            assert [key for key in before if not torch.equal(before[key], after[key])] == []
            params = hf_map.model_params(hf, critic=role == "critic") + [OUTPUT_LAYER] * (role == "critic")
            kinds = optimizer_state.KINDS if name == "untied" else ("exp_avg", "exp_avg_sq")
            head_has_none = {f"master.tp0.{OUTPUT_LAYER}"} if role == "critic" else set()  # float32 as it is
            assert between.keys() == {f"{kind}.tp0.{param}" for kind in kinds for param in params} - head_has_none
            for param in params:
                # One update of Adam from zero leaves (1 - 0.9) g and (1 - 0.95) g^2.
                gradient = _gradient(param, hf_map.param_shape(param, hf, critic=role == "critic"), 0).flatten()
                torch.testing.assert_close(between[f"exp_avg.tp0.{param}"], 0.1 * gradient)
                torch.testing.assert_close(between[f"exp_avg_sq.tp0.{param}"], 0.05 * gradient**2)


class GroupCountingAdam:
    """As the fused Adams of Transformer Engine and Apex: the count of steps lies in the parameter groups."""

    def __init__(self, param_groups: list[dict]):
        self.param_groups = [{"params": group["params"]} for group in param_groups]
        self.state: dict = defaultdict(dict)


def _resume_with_counts_in_groups(folder: Path, model: str) -> None:
    trained, hf, mesh = _trained(model, {})
    _save(folder, 1, trained, mesh, model)
    fresh, _, _ = _learners(model, {})
    adams = {}
    for role, learner in fresh.items():
        (inner,) = learner.optimizer.chained_optimizers
        inner.optimizer = adams[role] = GroupCountingAdam(inner.optimizer.param_groups)
    checkpoint.load(find_intact(folder, mesh), fresh)
    for role, adam in adams.items():
        (expected,) = trained[role].optimizer.chained_optimizers
        assert [group["step"] for group in adam.param_groups] == [2] * len(adam.param_groups)
        for state, wanted in zip(adam.state.values(), expected.optimizer.state.values(), strict=True):
            assert state.keys() == {"exp_avg", "exp_avg_sq"}
            assert all(torch.equal(state[kind], wanted[kind]) for kind in state)
    adams["actor"].param_groups[0]["step"] = 3
    with pytest.raises(RuntimeError, match=r"counts \[2, 3\] steps and its learner 2 updates"):
        _save(folder, 2, fresh, mesh, model)
    _leave()


def test_an_optimizer_that_counts_steps_in_its_groups_resumes_and_a_wrong_count_is_refused(tmp_path, models):
    run_ranks(_resume_with_counts_in_groups, 1, tmp_path, models["tied"])


# Damage.


def _three_saves(folder: Path, model: str) -> None:
    learners, _, mesh = _learners(model, {})
    with _saver(folder, mesh, model) as saver:
        for step in (1, 2, 3):
            saver.save(learners, _manifest(step, learners))
        saver.finish()
    _leave()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, models) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    run_ranks(_three_saves, 1, folder, models["tied"])
    return folder


WEIGHTS = "actor/model_weights/__0_0.distcp"


def _cut(newest: Path) -> None:
    os.truncate(newest / WEIGHTS, 1000)


def _flip_one_bit(newest: Path) -> None:
    content = bytearray((newest / WEIGHTS).read_bytes())
    content[5000] ^= 1
    (newest / WEIGHTS).write_bytes(content)


def _edit_manifest(newest: Path) -> None:
    text = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text(text.replace('"actor": 0', '"actor": 7'))


DAMAGE = {
    "cut": (_cut, f"{WEIGHTS} has 1000 bytes instead of"),
    "one bit flipped": (_flip_one_bit, f"{WEIGHTS} holds other bytes than were written"),
    "half deleted": (lambda newest: shutil.rmtree(newest / "critic"), r"critic/.* is missing; .*; and \d+ more"),
    "manifest deleted": (lambda newest: (newest / "manifest.json").unlink(), "it has no manifest.json"),
    "manifest cut": (lambda newest: os.truncate(newest / "manifest.json", 300), "its manifest.json cannot be read"),
    "manifest edited": (_edit_manifest, "its manifest.json was changed"),
    "weights alone": (
        lambda newest: (newest / "manifest.json").write_text('{"step": 3, "weights_only": true}'),
        "it holds weights alone, nothing to resume",
    ),
    "of another step": (
        lambda newest: shutil.copy(newest.with_name("step_000002") / "manifest.json", newest),
        "its manifest is that of step 2",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, saved, kind):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    damage, told = DAMAGE[kind]
    damage(folder / "step_000003")
    found = find_intact(folder, ALONE)
    assert found.path.name == "step_000002"
    assert found.manifest.step == 2
    (note,) = found.notes
    assert note.startswith("step_000003 cannot be used: ")
    assert re.search(told, note), note
    assert (folder / "step_000003.damaged").is_dir()
    assert _steps(folder) == [1, 2]


def test_when_no_checkpoint_is_left_each_is_named_and_none_is_touched(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    for step in (1, 2, 3):
        _cut(folder / f"step_{step:06d}")
    for _ in range(2):  # a second start must not take the run for a new one
        with pytest.raises(ValueError, match="no checkpoint to resume from.*step_000003 .*step_000002 .*step_000001 "):
            find_intact(folder, ALONE)


def test_latest_says_where_to_resume_and_without_it_the_newest_counts(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    assert (folder / "latest").read_text() == "step_000003\n"
    (folder / "latest").write_text("step_000001\n")
    assert find_intact(folder, ALONE).manifest.step == 1
    assert _steps(folder) == [1, 2, 3]
    (folder / "latest").write_text("step_0000")
    found = find_intact(folder, ALONE)
    assert found.manifest.step == 3
    assert "names 'step_0000', which is not there" in found.notes[0]
    (folder / "latest").unlink()
    assert find_intact(folder, ALONE).manifest.step == 3
    for step in (1, 2, 3):
        shutil.rmtree(folder / f"step_{step:06d}")
    assert find_intact(folder, ALONE) is None
    (folder / "latest").write_text("step_000003\n")
    with pytest.raises(ValueError, match="'step_000003', which is not there"):
        find_intact(folder, ALONE)


def test_what_a_broken_off_save_left_is_removed(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.copytree(folder / "step_000003", folder / "step_000004.partial")
    assert find_intact(folder, ALONE).manifest.step == 3
    assert not (folder / "step_000004.partial").exists()


def test_ranks_share_the_files_out_by_bytes():
    sizes = {"a": 100, "b": 60, "c": 50, "d": 10}
    files = {name: FileFacts(size, "") for name, size in sizes.items()}
    assert [sorted(share_of(files, rank, 2)) for rank in (0, 1)] == [["a", "d"], ["b", "c"]]
    assert share_of(files, 0, 1) == files


# Retention.


@pytest.mark.parametrize(
    ("scores", "newest", "keep", "dropped"),
    [
        ({1: None, 2: None, 3: None}, 3, Retention(2, 0, None), [1]),
        ({1: None, 2: None, 3: None}, 3, Retention(1, 0, None), [1, 2]),
        ({10: None, 20: None, 30: None, 40: None}, 40, Retention(1, 20, None), [10, 30]),
        ({1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}, 4, Retention(1, 0, "m"), [1, 3]),
        ({1: 0.5, 2: 0.5, 3: 0.1}, 3, Retention(1, 0, "m"), [1]),  # of equals the newer
        ({1: None, 2: None}, 2, Retention(1, 0, "m"), [1]),
        ({1: 0.0, 2: None}, 2, Retention(1, 0, "m"), []),
        ({1: None, 2: None, 8: None, 9: None}, 2, Retention(1, 0, None), [1]),  # 8 and 9: of a history left behind
    ],
)
def test_old_checkpoints_go_unless_they_are_asked_for(scores, newest, keep, dropped):
    assert superseded(scores, newest, keep) == dropped


def test_the_best_checkpoint_is_told_by_the_manifests(tmp_path):
    for step, score in ((1, 0.2), (2, 0.7), (3, 0.4), (4, 0.1)):
        (tmp_path / f"step_{step:06d}").mkdir()
        learner = SimpleNamespace(updates=step, skipped=0, mesh=SimpleNamespace(grid=Grid(range(1), 1, 1)))
        write_manifest(tmp_path / f"step_{step:06d}", _manifest(step, {"actor": learner}, score))
    (tmp_path / "step_000003/manifest.json").write_text("{")
    drop_old(tmp_path, At(4), Retention(last=1, every=0, best="eval/accuracy"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000004"]


def test_what_lies_within_a_step_goes_once_a_later_checkpoint_is_there_and_counts_for_nothing(tmp_path):
    within = [At(2, 3), At(2, 12), At(3, 1), At(4, 2)]
    for place in [At(1), At(2), At(3), *within]:
        (tmp_path / place.name).mkdir()
    drop_old(tmp_path, At(2, 12), Retention(last=2, every=0, best=None))
    assert _names(tmp_path) == sorted(place.name for place in [At(1), At(2), At(3), *within[1:]])
    drop_old(tmp_path, At(3), Retention(last=2, every=0, best=None))
    assert _names(tmp_path) == ["step_000002", "step_000003", "step_000004_update_0001", "step_000005_update_0002"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoints_are_in_the_order_of_time_and_their_names_say_where_they_lie():
    places = [
        At(2),
        At(2, 1),
        At(2, 12),
        At(3),
        At(999_999, 12_345),
    ]
    assert sorted(set(places)) == places
    assert [place.name for place in places[:3]] == ["step_000002", "step_000003_update_0001", "step_000003_update_0012"]
    assert [position_of(place.name) for place in places] == places
    others = (
        "step_3",
        "step_000003.partial",
        "step_000003_update_12",
        "step_000000_update_0001",
        "step_0000003",
        "latest",
    )
    assert [position_of(name) for name in others] == [None] * len(others)


# Saving in the background.


def _save_behind_training(folder: Path, model: str) -> None:
    learners, hf, mesh = _trained(model, {"use_distributed_optimizer": True}, "bf16")
    before = {name: tensor.clone() for name, tensor in _live(learners)}
    gate = threading.Event()
    with _saver(folder, mesh, model) as saver:
        if mesh.rank == 1:
            saver._thread.submit(gate.wait)  # holds this rank's writing up
        saver.save(learners, _manifest(1, learners))
        for learner in learners.values():
            _update(learner, hf, mesh)
        saver.finish_pending(block=False)
        assert saver.is_pending and _steps(folder) == []
        gate.set()
        saver.save(learners, _manifest(2, learners))  # waits for the first
        assert _steps(folder) == [1]
        saver.finish()
    assert _steps(folder) == [1, 2]
    after = {name: tensor.clone() for name, tensor in _live(learners)}
    for step, expected in ((1, before), (2, after)):
        (folder / "latest").write_text(f"step_{step:06d}\n")
        fresh, _, _ = _learners(model, {"use_distributed_optimizer": True}, "bf16")
        checkpoint.load(find_intact(folder, mesh), fresh)
        found = dict(_live(fresh))
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    _leave()


def test_a_save_holds_the_state_of_its_step_while_training_goes_on_and_the_next_waits_for_it(tmp_path, models):
    run_ranks(_save_behind_training, 2, tmp_path / "checkpoints", models["tied"])


def _save_where_it_waits(folder: Path, model: str) -> None:
    """A save that is held up until updates have been made after it, which wait to leave their state in host memory."""
    learners, hf, mesh = _trained(model, {"use_distributed_optimizer": True}, "bf16", offload_adam_states=True)
    before = {name: tensor.clone() for name, tensor in _live(learners)}
    gate, waits = threading.Event(), []

    def open_gate() -> None:
        """Once an update waits for the writer, or in 20 s."""
        ends = time.monotonic() + 20
        while waiting.in_words() != "checkpoint.writers" and time.monotonic() < ends:
            time.sleep(0.01)
        waits.append(waiting.in_words())
        gate.set()

    with _saver(folder, mesh, model) as saver:
        saver._thread.submit(gate.wait)
        saver.save(learners, _manifest(1, learners))
        threading.Thread(target=open_gate).start()
        copied = {folder for folder, *_ in saver._copies._kept}
        assert copied == ({"actor/model_weights", "critic/model_weights"} if mesh.dp_rank == 0 else set())
        for learner in learners.values():
            with learner.optimizer_on_device():
                _update(learner, hf, mesh)
        assert waits == ["checkpoint.writers"]
        saver.save(learners, _manifest(2, learners))
        saver.finish()
    after = {name: tensor.clone() for name, tensor in _live(learners)}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for step, expected in ((1, before), (2, after)):
        (folder / "latest").write_text(f"step_{step:06d}\n")
        fresh, _, _ = _learners(model, {"use_distributed_optimizer": True}, "bf16", offload_adam_states=True)
        checkpoint.load(find_intact(folder, mesh), fresh)
        found = dict(_live(fresh))
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    _leave()


def test_state_in_host_memory_is_saved_from_there_and_what_would_change_it_waits(tmp_path, models):
    run_ranks(_save_where_it_waits, 2, tmp_path / "checkpoints", models["tied"])


def _save_on_a_full_disk(folder: Path, model: str) -> list[str]:
    learners, _, mesh = _trained(model, {"use_distributed_optimizer": True}, updates=1)
    messages: list[str] = []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for in_background in (True, False):
        place = folder / str(in_background)
        saving = _saver(place, mesh, model, in_background=in_background)
        with messages_to(messages.append, is_first_rank=True), saving as saver:
            saver.save(learners, _manifest(1, learners))
            saver.finish_pending(block=True)
            if mesh.rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            saver.save(learners, _manifest(2, learners))
            with pytest.raises(RuntimeError, match="last checkpoint of the run could not be saved: rank 1: File too"):
                saver.finish()
            if mesh.rank == 0:
                assert sorted(path.name for path in place.iterdir()) == ["latest", "step_000001"]
            assert find_intact(place, mesh).manifest.step == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            saver.save(learners, _manifest(3, learners))
            saver.finish()
            assert find_intact(place, mesh).manifest.step == 3
    _leave()
    return messages


def test_a_full_disk_is_told_and_the_next_save_tries_again(tmp_path, models):
    of_first, of_second = run_ranks(_save_on_a_full_disk, 2, tmp_path, models["tied"])
    assert len(of_first) == 2 and of_second == []
    for text in of_first:
        assert "the checkpoint of step 2 was NOT saved: rank 1: File too large" in text
        assert "make room" in text


def test_the_shares_of_all_ranks_must_fit_on_the_disk_together(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "gather_objects", lambda own, group, what: [own] * 8)
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda place: SimpleNamespace(free=50))
    with closing(Saver(tmp_path / "new", ALONE, model_folder=str, keep=KEEP_ALL, in_background=False)) as alone:
        assert alone._has_room(6)
        assert not alone._has_room(10)


def _kill_at_every_touch_of_the_disk(folder: Path, model: str) -> list[int]:
    """The step that is resumed from when the save of step 2 is killed at the 1st, 2nd, ... file it opens or moves."""
    learners, _, mesh = _trained(model, {}, updates=1)
    del learners["critic"]  # half as many files
    _save(folder / "begun", 1, learners, mesh, model)
    resumed, status, place = [], 1, None
    while status:
        if place is not None:
            shutil.rmtree(place)
        place = shutil.copytree(folder / "begun", folder / "killed")
        child = os.fork()
        if child == 0:
            _save_and_die(place, len(resumed) + 1, learners, mesh, model)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        found = find_intact(place, mesh)
        assert found.notes == ()
        assert not list(place.glob("*.partial"))
        resumed.append(found.manifest.step)
    _leave()
    return resumed


def _save_and_die(folder: Path, at: int, learners: dict[str, Learner], mesh: Mesh, model: str) -> None:
    touches = 0

    def kill_at(event: str, arguments: tuple) -> None:
        nonlocal touches
        if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and str(folder) in str(arguments):
            touches += 1
            if touches == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_at)
    keep = Retention(last=1, every=0, best=None)
    with _saver(folder, mesh, model, keep=keep) as saver:
        saver.save(learners, _manifest(2, learners))
        saver.finish()
    os._exit(0)


def test_a_run_killed_anywhere_in_a_save_resumes_from_the_old_checkpoint_or_the_new_one(tmp_path, models):
    ((*killed, survived),) = run_ranks(_kill_at_every_touch_of_the_disk, 1, tmp_path, models["tied"])
    assert survived == 2
    assert killed == sorted(killed) and killed.count(1) > 20 and killed.count(2) > 3
