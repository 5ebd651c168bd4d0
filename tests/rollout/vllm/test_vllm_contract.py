"""The contract with vLLM: the adapter uses nothing beside it, and the installed vLLM keeps it."""

import ast
from pathlib import Path

import pytest
import torch

from fakes.stub import write_stub
from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.engines.vllm import engine_python
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.own_process.source_rules import Fields, Function, Says
from nemo_simplerl.rollout.vllm import contract, values
from nemo_simplerl.rollout.vllm.contract import CONTRACT, differences

SOURCES = Path(contract.__file__).parent
INSIDE = {name: ast.parse((SOURCES / f"{name}.py").read_text()) for name in ("server", "extension")}
PARAMS = SamplingParams(n=1, max_tokens=4, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=(2,))


def texts() -> set[str]:
    return {text for rule in CONTRACT if isinstance(rule, Says) for text in rule.texts}


def fields_of(name: str) -> set[str]:
    return {field for rule in CONTRACT if isinstance(rule, Fields) and rule.name == name for field in rule.fields}


def methods_of(name: str) -> set[str]:
    functions = [rule.name for rule in CONTRACT if isinstance(rule, Function)]
    return {function.removeprefix(f"{name}.") for function in functions if function.startswith(f"{name}.")}


@pytest.mark.vllm
def test_the_installed_vllm_keeps_the_contract():
    (source,) = Path(engine_python(None)).parents[1].glob("lib/python3*/site-packages/vllm")
    assert differences(source) == []


def test_a_package_with_what_the_rows_name_keeps_it_and_what_is_gone_is_told(tmp_path):
    source = write_stub(tmp_path / "vllm", CONTRACT)
    assert differences(source) == []
    file = source / "entrypoints/llm.py"
    file.write_text(file.read_text().replace("def wake_up", "def wake"))
    (source / "logprobs.py").unlink()
    told = differences(source)
    assert told[0] == "entrypoints/llm.py: there is no LLM.wake_up"
    assert told[1].startswith("logprobs.py: cannot be read") and len(told) == 2


@pytest.mark.parametrize("module", INSIDE)
def test_every_import_from_vllm_is_a_row(module):
    for node in ast.walk(INSIDE[module]):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "vllm":
            continue
        folder = "/".join(node.module.split(".")[1:])
        for name in (alias.name for alias in node.names):
            files = {f"{folder}.py", f"{folder}/__init__.py".lstrip("/"), f"{folder}/{name}.py"}
            rows = [rule for rule in CONTRACT if rule.file in files]
            assert any(names(rule, name) for rule in rows), f"{module}.py imports {name} from {node.module}"


def names(rule, name: str) -> bool:
    """Whether a row of the file that a name is imported from holds that name, or that the file is itself the name."""
    if rule.file.endswith(f"/{name}.py"):
        return True
    if isinstance(rule, Says):
        return name in rule.texts or any("import *" in text for text in rule.texts)
    return rule.name.partition(".")[0] == name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_argument_that_starts_an_engine_is_a_row(device, tmp_path):
    settings = compose(["model.path=none", "data.train_path=none.jsonl"]).rollout.vllm
    given = values.llm_arguments(tmp_path, torch.device(device), torch.float32, 64, settings)
    (start,) = [rule for rule in CONTRACT if getattr(rule, "name", "") == "LLM.__init__"]
    assert given.keys() | {"worker_extension_cls"} <= {*start.params, *fields_of("EngineArgs")}
    assert given["logprobs_mode"] in texts()


def test_every_argument_of_a_request_and_every_variable_is_a_row():
    assert values.request_arguments(PARAMS, 1).keys() <= fields_of("SamplingParams")
    variables = {name for name in values.process_environment([], 1) if name.startswith("VLLM_")}
    assert variables <= texts()


def test_every_call_of_the_engine_is_a_row():
    called = {"LLM": set(), "LLMEngine": set()}
    for node in ast.walk(INSIDE["server"]):
        if isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if of in ("llm", "self._llm"):
                called["LLM"].add(node.attr)
            elif of.endswith("llm.llm_engine"):
                called["LLMEngine"].add(node.attr)
    assert called["LLM"] - {"llm_engine"} <= methods_of("LLM")
    assert called["LLMEngine"] - {"engine_core"} <= methods_of("LLMEngine")
    assert called["LLM"] and called["LLMEngine"]
