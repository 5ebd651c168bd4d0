"""Folders of NeMo 2, Megatron-Bridge and Megatron-LM that are written here: there and back, and what their own readers
make of them.
"""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nemo_simplerl.model.conversion import nemo_toolkit
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from support.forms import FAMILIES, VARIANTS, converted, same_bits, save_critic, save_model, tensors_of
from support.ranks import run_ranks
from support.tiny import layout

FORMS = ("nemo2", "bridge", "megatron")
WEIGHTS = {"nemo2": "weights", "bridge": "iter_0000000", "megatron": "release"}
PREFIX = {"nemo2": "module.", "bridge": "", "megatron": ""}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model of each family, as Hugging Face folders. Read-only."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(folder / name, name) for name in FAMILIES | VARIANTS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*sorted(FAMILIES.keys() - {"llama3_rope"}), "mistral_heads", "deepseek_math"])
def test_a_model_goes_there_and_back_with_every_bit_and_file(models, tmp_path, name, form):
    folder = converted(models[name], tmp_path / "there", form)
    back = converted(folder, tmp_path / "back")
    assert same_bits(tensors_of(back), tensors_of(models[name]))
    assert {path.name for path in back.iterdir()} == {path.name for path in models[name].iterdir()}
    before, after = (json.loads((path / "config.json").read_text()) for path in (models[name], back))
    assert before | {"dtype": "float32", "torch_dtype": "float32"} == after | {"dtype": "float32"}
    bare = converted(folder, tmp_path / "cast", dtype=torch.bfloat16)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors_of(bare).values())


@pytest.mark.parametrize("form", FORMS)
def test_an_attention_window_is_refused_where_a_form_cannot_say_it(models, tmp_path, form):
    with pytest.raises(ValueError, match="sliding_window is 96 of 128 positions.*keep the model as hf or nemo"):
        converted(models["mistral_window"], tmp_path / "there", form)


def set_rope(model: Path, **changes) -> None:
    config = json.loads((model / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_scaling"] = scaling | {"original_max_position_embeddings": 8192} | changes
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", FORMS)
def test_rotary_scaling_is_written_whole_or_refused(tmp_path, form):
    model = save_model(tmp_path / "llama", "llama")
    set_rope(model, factor=32.0)
    assert open_source(converted(model, tmp_path / "usual", form)).hf["rope_scaling"]["factor"] == 32.0
    for path in (tmp_path / "usual").rglob("config.json"):
        path.unlink()  # what the form itself says
    assert open_source(tmp_path / "usual").hf["rope_scaling"] == open_source(model).hf["rope_scaling"]
    set_rope(model, low_freq_factor=2.0, original_max_position_embeddings=4096)
    if form == "nemo2":
        written = converted(model, tmp_path / "other", form)
        next(written.rglob("config.json")).unlink()
        assert open_source(written).hf["rope_scaling"] == open_source(model).hf["rope_scaling"]
    else:
        match = rf"low_freq_factor 2.0, original_max_position_embeddings 4096: {form} cannot say it"
        with pytest.raises(ValueError, match=match):
            converted(model, tmp_path / "other", form)
        assert not list(tmp_path.glob("*other*"))
    config = json.loads((model / "config.json").read_text())
    config["rope_scaling"] = {"type": "linear", "factor": 2.0}
    (model / "config.json").write_text(json.dumps(config))
    linear = converted(model, tmp_path / "linear", form)
    next(linear.rglob("config.json")).unlink()
    assert open_source(linear).hf["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_nemo2_refuses_a_scaling_that_only_its_llama_has(models, tmp_path):
    model = converted(models["qwen2_untied"], tmp_path / "qwen2")
    set_rope(model)
    with pytest.raises(ValueError, match="type llama3 in a qwen2: nemo2 cannot say it"):
        converted(model, tmp_path / "out", "nemo2")


# Fields of GPTModelProvider and of the TransformerConfig that it extends, which Megatron-Bridge 0.6.0 fills from
# run_config.yaml: https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/v0.6.0/src/megatron/bridge/models/gpt_provider.py
# and megatron/core/transformer/transformer_config.py. Unknown keys it drops with a warning.
PROVIDER_FIELDS = {
    "share_embeddings_and_output_weights",
    "make_vocab_size_divisible_by",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "rope_scaling",
    "rope_scaling_factor",
    "seq_len_interpolation_factor",
    "seq_length",
    "vocab_size",
    "should_pad_vocab",
    "qk_layernorm",
    "normalization",
}


def test_bridges_provider_has_every_field_that_is_written_and_its_targets_are_allowed(models, tmp_path):
    from dataclasses import fields

    from megatron.core.transformer.transformer_config import TransformerConfig

    folder = converted(models["qwen3_tied"], tmp_path / "x", "bridge")
    config = yaml.safe_load((folder / "iter_0000000/run_config.yaml").read_text())
    assert config["model"].pop("_target_") == "megatron.bridge.models.gpt_provider.GPTModelProvider"
    known = PROVIDER_FIELDS | {field.name for field in fields(TransformerConfig)}
    assert not config["model"].keys() - known
    assert config["model"]["activation_func"] == {"_target_": "torch.nn.functional.silu", "_call_": False}
    assert config["model"]["params_dtype"] == {"_target_": "torch.float32", "_call_": False}
    tokenizer = Path(config["tokenizer"]["tokenizer_model"])
    assert tokenizer == folder / "iter_0000000/tokenizer" and (tokenizer / "tokenizer.json").is_file()
    state = torch.load(folder / "iter_0000000/train_state.pt", weights_only=True)
    assert state["step"].item() == 0 and all(value.ndim == 0 for value in state.values())
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "0"


def _judged_by_megatron(written: dict[str, dict[str, str]], out: str, tp: int, pp: int) -> list[str]:
    """Names of the parameters that Megatron-core's loader finds otherwise than our reader. What it loaded is saved
    again by its own writer, with Megatron-LM's arguments, below `out`."""
    from megatron.core import dist_checkpointing, parallel_state

    multiprocessing.current_process()._config["daemon"] = False  # Megatron's writer starts a process of its own
    mesh = build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
    )
    parallel_state.destroy_global_memory_buffer()
    parallel_state.initialize_model_parallel(tp, pp)  # Megatron's loader and writer ask its globals
    different = []
    for name, by_form in written.items():
        for form, folder in by_form.items():
            source = open_source(folder)
            seed = 1 if source.is_critic else None
            expected, found = (
                build_gpt_model(
                    source.hf,
                    layout(tp, pp),
                    mesh,
                    dtype=torch.float32,
                    transformer_engine=False,
                    critic_seed=seed,
                )
                for _ in range(2)
            )
            load_weights(expected, source, mesh)
            state = found.sharded_state_dict(prefix=PREFIX[form])
            loaded = dist_checkpointing.load(state, f"{folder}/{WEIGHTS[form]}")
            found.load_state_dict({key.removeprefix(PREFIX[form]): loaded[key] for key in state})
            params = dict(found.named_parameters())
            vocab = source.hf["vocab_size"]
            for key, param in expected.named_parameters():
                rows = slice(None) if "word_embeddings" not in key and "output_layer" not in key else slice(vocab)
                if not torch.equal(param[rows], params[key][rows]):
                    different.append(f"{name} {form} {key}")
            if form == "megatron":
                common = dist_checkpointing.load_common_state_dict(f"{folder}/{WEIGHTS[form]}")
                target = Path(out) / name
                target.mkdir(parents=True, exist_ok=True)
                again = found.sharded_state_dict() | {"args": common["args"], "iteration": 7}
                dist_checkpointing.save(again, str(target))
    return different


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_megatrons_loader_finds_every_weight_and_what_its_writer_saves_is_read(models, tmp_path, tp, pp):
    names = ("qwen2_tied", "qwen3_untied", "llama")
    written = {
        name: {form: str(converted(models[name], tmp_path / name / form, form)) for form in FORMS} for name in names
    }
    critic = save_critic(tmp_path / "critic-hf")
    if pp == 1:
        written["critic"] = {
            form: str(converted(critic, tmp_path / "critic" / form, form, critic=True)) for form in FORMS
        }
    answers = run_ranks(_judged_by_megatron, tp * pp, written, str(tmp_path / "saved"), tp, pp)
    assert [item for answer in answers for item in answer] == []
    for name in written:
        original = models.get(name, critic)
        # Two tensor ranks pad the vocabulary, whose size the arguments do not hold.
        saved = open_source(tmp_path / "saved" / name, critic=name == "critic", tokenizer=original)
        convert(saved, Target("hf", tmp_path / "back" / name), lambda done, total: None)
        assert same_bits(tensors_of(tmp_path / "back" / name), tensors_of(original))


# Run where the packages above NeMo's model classes are empty, and those that its core extra does not bring: they are
# imported, and the classes do not need them.
BY_NEMO = """
import importlib.abc, importlib.machinery, json, sys, types
from pathlib import Path

class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("einops", "sentencepiece", "tensorstore", "tiktoken"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__file__, module.__getattr__ = "/dev/null", lambda name: type(name, (), {})
        return module
    def exec_module(self, module):
        pass

sys.meta_path.append(Empty())  # last: installed ones come first
import nemo
import nemo.lightning.io as io
from nemo.lightning.io.api import load_context
llm, common = "nemo.collections.llm", "nemo.collections.common"
emptied = (common, common + ".parts", common + ".tokenizers", llm, llm + ".gpt", llm + ".gpt.model")
for name in emptied:
    module = sys.modules.setdefault(name, types.ModuleType(name))
    module.__path__ = [str(Path(nemo.__file__).parent.joinpath(*name.split(".")[1:]))]
answers = {}
for folder in sys.argv[1:]:
    # Not built: Llama's default, fused rotary positions, asks for Transformer Engine.
    config = load_context(Path(folder), subpath="model.config", build=False)
    model = load_context(Path(folder), subpath="model", build=False)
    names = (
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels layernorm_epsilon "
        "rotary_base seq_length vocab_size share_embeddings_and_output_weights add_qkv_bias qk_layernorm normalization "
        "gated_linear_unit add_bias_linear position_embedding_type scale_factor old_context_len"
    )
    answers[folder] = {name: getattr(config, name, None) for name in names.split()} | {
        "class": config.__fn_or_cls__.__name__, "model": model.__fn_or_cls__.__name__,
        "activation": config.activation_func.__name__, "dtype": str(config.params_dtype),
        "tokenizer": model.tokenizer.pretrained_model_name,
    }
print("ANSWER", json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.skipif(not nemo_toolkit.is_installed(), reason="nemo-toolkit is not installed (the extra 'nemo')")
def test_nemos_load_context_reads_the_config_that_was_written(models, tmp_path):
    folders = {name: converted(models[name], tmp_path / name, "nemo2") for name in FAMILIES}
    done = subprocess.run(
        [sys.executable, "-c", BY_NEMO, *map(str, folders.values())], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.partition("ANSWER ")[2])
    for name, folder in folders.items():
        hf, found = open_source(models[name]).hf, answers[str(folder)]
        kind, tied = FAMILIES[name]
        stem = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "llama3_rope": "Llama"}[kind]
        assert (found["class"], found["model"]) == (
            "Llama31Config" if kind == "llama3_rope" else f"{stem}Config",
            f"{stem}Model",
        )
        assert (found["num_layers"], found["hidden_size"], found["ffn_hidden_size"], found["vocab_size"]) == (
            4,
            64,
            96,
            331,
        )
        assert (found["num_attention_heads"], found["num_query_groups"]) == (4, 2)
        assert found["kv_channels"] == hf.get("head_dim", 16) and found["layernorm_epsilon"] == hf["rms_norm_eps"]
        assert found["seq_length"] == 128 and found["rotary_base"] == hf["rope_theta"]
        assert found["share_embeddings_and_output_weights"] is tied
        assert (found["add_qkv_bias"], found["qk_layernorm"]) == (kind == "qwen2", kind == "qwen3")
        assert (found["normalization"], found["activation"], found["gated_linear_unit"]) == ("RMSNorm", "silu", True)
        assert found["position_embedding_type"] == "rope" and found["add_bias_linear"] is False
        assert found["dtype"] == "torch.float32"
        assert (folder / "context" / found["tokenizer"]).samefile(folder / "context/nemo_tokenizer")
        if kind == "llama3_rope":
            assert (found["scale_factor"], found["old_context_len"]) == (4.0, 32)


@pytest.mark.gpu
def test_bridge_itself_loads_a_checkpoint_and_gives_the_model_back(models, tmp_path):
    pytest.importorskip("megatron.bridge", reason="Megatron-Bridge is not installed")
    from megatron.bridge import AutoBridge

    for name in ("qwen2_untied", "qwen3_untied", "llama"):
        folder = converted(models[name], tmp_path / name, "bridge")
        bridge = AutoBridge.from_hf_pretrained(str(models[name]))
        bridge.export_ckpt(str(folder), str(tmp_path / f"{name}-back"))
        assert same_bits(tensors_of(tmp_path / f"{name}-back"), tensors_of(models[name]))
