"""NeMo 2's context: its classes' defaults, and trees that others wrote."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from nemo_simplerl.config.forms.nemo2 import describe
from nemo_simplerl.config.forms.nemo2_classes import _CLASSES, defaults_of

NEMO = find_spec("nemo")
# In io.json a dtype, a wrapped hub name, an object that is a pickle beside the file, and a list.
TREE = {
    "root": {"type": "ref", "key": "context"},
    "objects": {
        "names": {
            "type": {"name": "tuple"},
            "items": [["0", "num_layers"], ["1", "params_dtype"], ["2", "window_size"]],
        },
        "window": {"type": {"name": "list"}, "items": [["0", {"type": "leaf", "value": 4096}], ["1", 0]]},
        "about": {
            "items": [["a", {"type": "pyref", "name": "Qwen25Config7B"}], ["b", {"type": "ref", "key": "names"}]],
        },
        "config": {
            "items": [
                ["Attr(name='x')", {"type": "leaf", "value": 3}],
                ["", {"type": "pyref", "module": "torch", "name": "bfloat16"}],
                ["", {"type": "ref", "key": "window"}],
            ],
            "metadata": {"type": "ref", "key": "about"},
            "paths": ["<root>.trainer.x", "<root>.model.config"],
        },
        "hub_names": {"type": {"name": "tuple"}, "items": [["0", "attr"], ["1", "skip"]]},
        "hub_about": {"items": [["a", {"type": "pyref", "name": "Dir"}], ["b", {"type": "ref", "key": "hub_names"}]]},
        "hub": {
            "items": [["", {"type": "leaf", "value": "Qwen/Qwen2.5-7B"}], ["", {"type": "leaf", "value": True}]],
            "metadata": {"type": "ref", "key": "hub_about"},
        },
        "tok_names": {"type": {"name": "tuple"}, "items": [["0", "pretrained_model_name"]]},
        "tok_about": {"items": [["a", {"type": "pyref", "name": "Auto"}], ["b", {"type": "ref", "key": "tok_names"}]]},
        "tokenizer": {
            "items": [["", {"type": "ref", "key": "hub"}]],
            "metadata": {"type": "ref", "key": "tok_about"},
            "paths": ["<root>.model.tokenizer"],
        },
    },
}


def folder_of(path: Path, tree: dict | None = TREE, model: dict | None = None, context: str = "context") -> Path:
    (path / "weights").mkdir(parents=True)
    (path / context).mkdir(exist_ok=True)
    if tree is not None:
        (path / context / "io.json").write_text(json.dumps(tree))
    if model is not None:
        (path / context / "model.yaml").write_text(yaml.safe_dump(model))
    return path


def test_what_was_not_given_has_the_default_of_the_class(tmp_path):
    found = describe(folder_of(tmp_path / "x"))
    assert found.class_name == "Qwen25Config7B" and found.tokenizer == "Qwen/Qwen2.5-7B"
    assert found.settings["num_layers"] == 3  # given
    assert found.settings["hidden_size"] == 3584 and found.settings["seq_length"] == 131072  # of the class
    assert found.settings["normalization"] == "RMSNorm"  # of a class that it extends
    assert found.settings["add_qkv_bias"] is True
    assert found.settings["window_size"] == [4096, 0] and found.settings["params_dtype"] == "bfloat16"


def test_model_yaml_fills_in_what_io_json_leaves_out_or_stands_for_it(tmp_path):
    silu = {"_target_": "torch.nn.functional.silu", "_call_": False}
    config = {"_target_": "x.y.MyConfig", "num_layers": 9, "hidden_size": 64, "activation_func": silu}
    model = {"config": config, "tokenizer": {"pretrained_model_name": "nemo_tokenizer"}}
    both = describe(folder_of(tmp_path / "both", model=model))
    assert both.settings["num_layers"] == 3 and both.settings["hidden_size"] == 64
    alone = describe(folder_of(tmp_path / "alone", None, model))
    assert alone.settings == {"num_layers": 9, "hidden_size": 64, "activation_func": "silu"}
    assert alone.class_name == "MyConfig" and alone.tokenizer == "nemo_tokenizer" and alone.tokenizer_folder is None
    (tmp_path / "alone/context/nemo_tokenizer").mkdir()
    assert describe(tmp_path / "alone").tokenizer_folder == tmp_path / "alone/context/nemo_tokenizer"


def test_the_first_releases_wrote_the_context_at_the_top(tmp_path):
    assert describe(folder_of(tmp_path / "x", context=".")).settings["num_layers"] == 3


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"weights/.metadata": ""}, "lacks context/io.json and context/model.yaml; copy the whole NeMo 2 folder"),
        ({"context/io.json": "{}"}, "lacks weights/; copy the whole NeMo 2 folder"),
        ({"context/io.json": "{}", "weights/adapter_metadata.json": "{}"}, r"is an adapter \(LoRA\)"),
        ({"context/io.json": "{}", "hf_weights/config.json": ""}, "in Hugging Face's form; give .*hf_weights"),
        ({"context/io.json": "{}", "weights/.metadata": ""}, r"is no context of NeMo 2 \('objects'\)"),
        ({"context/io.json": "[", "weights/.metadata": ""}, "io.json is not JSON"),
        (
            {"context/model.yaml": "a: !!python/object:os.x {}", "weights/.metadata": ""},
            "model.yaml is no YAML of",
        ),
        ({"context/model.yaml": "a: 1", "weights/.metadata": ""}, "describes no model: it has no section config"),
    ],
)
def test_half_a_folder_and_other_kinds_are_refused_with_what_is_missing(tmp_path, files, match):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        describe(tmp_path)


def test_a_tokenizer_that_leads_outside_is_not_followed(tmp_path):
    for name in ("..", "../weights", str(tmp_path)):
        model = {"config": {"num_layers": 1}, "tokenizer": {"pretrained_model_name": name}}
        found = describe(folder_of(tmp_path / name.replace("/", "_"), None, model))
        assert found.tokenizer_folder is None and found.tokenizer == name


@pytest.mark.skipif(NEMO is None, reason="nemo-toolkit is not installed (the extra 'nemo')")
def test_the_defaults_are_those_of_nemos_classes():
    folder = Path(NEMO.submodule_search_locations[0]) / "collections/llm/gpt/model"
    found = 0
    for name in ("base", "llama", "qwen2", "qwen3", "mistral"):
        for node in ast.parse((folder / f"{name}.py").read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name not in _CLASSES:
                continue
            defaults = defaults_of(node.name)
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value is not None and line.target.id in defaults:
                    text = ast.unparse(line.value).replace("field(default_factory=lambda: ", "").rstrip(")")
                    value = text.rpartition(".")[2] if "F." in text else ast.literal_eval(text)
                    assert defaults[line.target.id] == value, (node.name, line.target.id)
                    found += 1
    assert found > 200
