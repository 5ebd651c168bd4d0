"""Folders of NeMo 2, Megatron-Bridge and Megatron-LM as others write them: cut over ranks, with optimizer states,
padded vocabularies, settings of their own."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.checkpoint import FileSystemWriter

from nemo_simplerl.config.shape import ModelShape, read_shape
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.conversion.nemo_writer import folder_writer, stacked_key
from nemo_simplerl.model.formats.torch_dist import RankFile, write_index
from nemo_simplerl.model.source import open_source
from support.forms import converted, same_bits, save_critic, save_model, tensors_of

FORMS = ("nemo2", "bridge", "megatron")
ITERATION = {"nemo2": "weights", "bridge": "iter_0000000", "megatron": "release"}
PREFIX = {"nemo2": "module.", "bridge": "", "megatron": ""}
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A tied Qwen2 in every form. Read-only: the tests share it, and change copies."""
    folder = tmp_path_factory.mktemp("made")
    hf = save_model(folder / "hf", "qwen2_tied")
    return {"hf": hf} | {form: converted(hf, folder / form, form) for form in FORMS}


def state_of(source_folder: Path, prefix: str, *, stacked: bool = True, pad_to: int = 0) -> dict[str, torch.Tensor]:
    """The state that Megatron's writer is given for the model in `source_folder`; vocabularies padded with sevens."""
    source = open_source(source_folder)
    layers: dict[str, list[torch.Tensor]] = {}
    for name in source.specs:
        tensor = source.read(name)
        if pad_to and tensor.shape[0] == source.hf["vocab_size"]:
            tensor = torch.cat([tensor, torch.full((pad_to - len(tensor), tensor.shape[1]), 7.0)])
        key, layer = stacked_key(name, prefix) if stacked else (prefix + name, None)
        layers.setdefault(key, []).append(tensor if layer is None else tensor[None])
    return {key: torch.cat(tensors) for key, tensors in layers.items()}


def saved_by_torch(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Put `state` in place of the weights in `folder`, as torch's own writer does, in three files."""
    for name in [".metadata", *(file.name for file in folder.glob("*.distcp"))]:
        (folder / name).unlink()
    dcp.save(state, storage_writer=FileSystemWriter(folder, thread_count=3), no_dist=True)


def shape_of(folder: Path) -> ModelShape:
    """The shape that a run sees at `folder`, before torch is loaded."""
    return read_shape(SimpleNamespace(path=str(folder), create=None))


def copy_of(made: dict[str, Path], form: str, target: Path) -> tuple[Path, Path]:
    """A copy of the folder of a form, and the folder of its weights."""
    shutil.copytree(made[form], target)
    return target, target / ITERATION[form]


def set_tied(folder: Path, form: str, tied: bool) -> None:
    """Change in a folder of ours whether the embeddings are tied."""
    key = "share_embeddings_and_output_weights"
    if form == "bridge":
        change_yaml(folder / "iter_0000000/run_config.yaml", lambda content: content["model"].update({key: tied}))
    elif form == "nemo2":
        (folder / "context/io.json").unlink()
        change_yaml(folder / "context/model.yaml", lambda content: content["config"].update({key: tied}))
    else:
        set_args(folder, untie_embeddings_and_output_weights=not tied)


def change_yaml(path: Path, change) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def set_args(folder: Path, **changes) -> None:
    path = folder / "release/common.pt"
    state = torch.load(path, weights_only=False)
    for name, value in changes.items():
        setattr(state["args"], name, value)
    torch.save(state, path)


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_others_cut_are_read_without_their_optimizer(made, tmp_path, form):
    for stacked in (True, False):
        folder, weights = copy_of(made, form, tmp_path / str(stacked))
        state = state_of(made["hf"], PREFIX[form], stacked=stacked)
        flat = {f"{name}.{EMBEDDING}": torch.ones(3) for name in ("optimizer.state.exp_avg", "chained_0.optimizer.x")}
        saved_by_torch(weights, state | flat)
        assert same_bits(tensors_of(converted(folder, tmp_path / f"back{stacked}")), tensors_of(made["hf"]))


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_that_an_importer_unties_are_read_as_two_matrices(made, tmp_path, form):
    folder, weights = copy_of(made, form, tmp_path / "x")
    state = state_of(made["hf"], PREFIX[form])
    embedding = state[PREFIX[form] + EMBEDDING]
    saved_by_torch(weights, state | {PREFIX[form] + OUTPUT: embedding + 1})
    with pytest.raises(ValueError, match="output_layer.weight differs from the embeddings, to which it is tied"):
        open_source(folder)
    set_tied(folder, form, False)
    back = converted(folder, tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["tie_word_embeddings"] is False
    assert same_bits(tensors_of(back), tensors_of(made["hf"]) | {"lm_head.weight": embedding + 1})
    assert shape_of(folder).tied is False


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_pad_a_vocabulary_are_dropped_where_its_size_is_known(made, tmp_path, form):
    folder, weights = copy_of(made, form, tmp_path / "x")
    saved_by_torch(weights, state_of(made["hf"], PREFIX[form], pad_to=384))
    assert same_bits(tensors_of(converted(folder, tmp_path / "back")), tensors_of(made["hf"]))
    if form == "megatron":  # which notes the padded size alone
        shutil.rmtree(folder / "release/hf")
        assert open_source(folder).hf["vocab_size"] == shape_of(folder).vocab_size == 384
        source = open_source(folder, tokenizer=made["hf"])
        convert(source, Target("hf", tmp_path / "given", tokenizer=made["hf"]), lambda done, total: None)
        assert same_bits(tensors_of(tmp_path / "given"), tensors_of(made["hf"]))


def test_a_checkpoint_without_common_pt_has_its_arguments_in_an_object(made, tmp_path):
    folder, weights = copy_of(made, "megatron", tmp_path / "x")
    args = torch.load(weights / "common.pt", weights_only=False)["args"]
    create = folder_writer(weights)
    with create("__0_0.distcp") as stream:
        file = RankFile(stream, "__0_0.distcp")
        for key, tensor in state_of(made["hf"], "").items():
            file.add(key, tensor, tensor.shape, [0] * tensor.ndim)
        file.add_object("common_state/shard_0_1", [{"args": args}])
    write_index(create, file.written)
    (weights / "common.pt").unlink()
    assert same_bits(tensors_of(converted(folder, tmp_path / "back")), tensors_of(made["hf"]))
    assert shape_of(folder).num_layers == 4


class Command:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("form", FORMS)
def test_a_command_in_a_pickle_that_is_read_is_refused_and_the_others_are_not_opened(made, tmp_path, form):
    command = Command(tmp_path / "canary")
    folder, weights = copy_of(made, form, tmp_path / "index")
    (weights / ".metadata").write_bytes(pickle.dumps({"a": command}))
    with pytest.raises(ValueError, match=r"\.metadata asks for posix\.system when it is loaded, .* refused"):
        open_source(folder)
    folder, weights = copy_of(made, form, tmp_path / "rest")
    if form == "megatron":
        set_args(folder, num_experts=command)
        for look in (open_source, shape_of):
            with pytest.raises(ValueError, match=r"common.pt asks for posix\.system when it is loaded, .* refused"):
                look(folder)
        return
    for path in (
        weights / "common.pt",
        weights / "train_state.pt",
        folder / "context/0f8fad5b-d9cb-469f-a165-7086772895",
    ):
        path.parent.mkdir(exist_ok=True)
        torch.save(command, path)
    if form == "bridge":
        shutil.rmtree(folder / "context")
    assert same_bits(tensors_of(converted(folder, tmp_path / "back")), tensors_of(made["hf"]))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("form", FORMS)
def test_settings_with_which_the_model_would_compute_something_else_are_named_together(made, tmp_path, form):
    folder, _ = copy_of(made, form, tmp_path / "x")
    changes = {"num_moe_experts": 8, "window_size": [64, 0], "rotary_percent": 0.5, "normalization": "LayerNorm"}
    if form == "megatron":
        set_args(folder, num_experts=8, **{name: value for name, value in changes.items() if "moe" not in name})
    elif form == "bridge":
        change_yaml(folder / "iter_0000000/run_config.yaml", lambda content: content["model"].update(changes))
    else:
        (folder / "context/io.json").unlink()
        change_yaml(folder / "context/model.yaml", lambda content: content["config"].update(changes))
    with pytest.raises(ValueError) as error:
        open_source(folder)
    for told in (
        "num_moe_experts is 8, only None or 0 is supported",
        "window_size is [64, 0], only None is supported",
        "rotary_percent is 0.5, only None or 1.0 is supported",
        "normalization is 'LayerNorm', only 'RMSNorm' is supported",
    ):
        assert told in str(error.value)


def test_defaults_of_bridges_provider_count_where_a_key_is_left_out(made, tmp_path):
    folder, _ = copy_of(made, "bridge", tmp_path / "x")
    file = folder / "iter_0000000/run_config.yaml"
    change_yaml(file, lambda content: [content["model"].pop(name) for name in ("rotary_base", "rotary_percent")])
    assert open_source(folder).hf["rope_theta"] == 10000.0
    change_yaml(file, lambda content: content["model"].pop("position_embedding_type"))
    with pytest.raises(ValueError, match="position_embedding_type is 'learned_absolute', only 'rope' is supported"):
        open_source(folder)
    change_yaml(file, lambda content: content.update(model={"_builder_": "x.Y"}))
    with pytest.raises(ValueError, match="model has no _target_: only models of a GPTModelProvider are read"):
        open_source(folder)


@pytest.mark.parametrize("form", FORMS)
def test_half_a_copy_is_refused_with_what_is_missing(made, tmp_path, form):
    folder, weights = copy_of(made, form, tmp_path / "x")
    missing = {"nemo2": folder / "context", "bridge": weights / "run_config.yaml", "megatron": weights / "common.pt"}
    told = {
        "nemo2": "lacks context/io.json and context/model.yaml; copy the whole NeMo 2 folder",
        "bridge": "lacks run_config.yaml; copy the whole iteration",
        "megatron": r"holds neither run_config.yaml nor args in its common state",
    }
    (weights / "__0_0.distcp").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="the file __0_0.distcp that holds part .* of it is missing"):
        open_source(folder)
    (tmp_path / "away").rename(weights / "__0_0.distcp")
    shutil.rmtree(missing[form]) if missing[form].is_dir() else missing[form].unlink()
    for _ in ("opened", "seen before torch is loaded"):
        with pytest.raises(ValueError, match=told[form]):
            open_source(folder)
        with pytest.raises(ValueError, match=f"^model.path: .*{told[form]}"):
            shape_of(folder)


def test_a_config_of_another_model_beside_the_tokenizer_decides_nothing(made, tmp_path):
    folder, _ = copy_of(made, "nemo2", tmp_path / "x")
    file = folder / "context/nemo_tokenizer/config.json"
    before = open_source(folder).hf
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 896, "bos_token_id": 99}))
    after = open_source(folder).hf
    assert after["hidden_size"] == 64 and after["bos_token_id"] is None
    assert {name: before[name] for name in ("rope_theta", "num_hidden_layers")} == {
        name: after[name] for name in ("rope_theta", "num_hidden_layers")
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_critics_head_is_an_output_layer_of_one_row(tmp_path, form):
    critic = save_critic(tmp_path / "critic")
    folder = converted(critic, tmp_path / form, form, critic=True)
    source = open_source(folder, critic=True)
    assert source.is_critic and source.specs[OUTPUT].shape == (1, 64)
    back = converted(folder, tmp_path / "back", critic=True)
    assert same_bits(tensors_of(back), tensors_of(critic))
