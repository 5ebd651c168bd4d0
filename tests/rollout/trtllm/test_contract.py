"""The contract with TensorRT-LLM: the double keeps it, each broken row is reported, and the real package is read where
it is installed."""

import ast
import shutil

import pytest

from fakes.double import FAKES
from nemo_simplerl.rollout.trtllm.contract import (
    CONTRACT,
    Fields,
    Function,
    Imports,
    LacksMethod,
    Says,
    differences,
    installed_source,
)


@pytest.fixture
def package(tmp_path):
    """A copy of the double's source, for the tests to break."""
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(FAKES / "tensorrt_llm", tmp_path / "tensorrt_llm", ignore=ignored)


def test_the_installed_package_keeps_the_contract():
    source = installed_source()
    if source is None:
        pytest.skip("tensorrt-llm is not installed here; the container image has it")
    assert differences(source) == []


def test_the_double_keeps_the_contract():
    assert differences(FAKES / "tensorrt_llm") == []


@pytest.mark.parametrize("file", sorted({rule.file for rule in CONTRACT if not isinstance(rule, LacksMethod)}))
def test_a_file_that_is_gone_is_told_once(package, file):
    (package / file).unlink()
    [told] = differences(package)
    assert told.startswith(f"{file}: cannot be read")


def test_a_file_that_is_no_python_is_told(package):
    (package / "sampling_params.py").write_text("class SamplingParams(:")
    assert [told.partition(" (")[0] for told in differences(package)] == ["sampling_params.py: cannot be read"]


def rows(kind):
    return [rule for rule in CONTRACT if isinstance(rule, kind)]


@pytest.mark.parametrize("rule", rows(Function), ids=lambda rule: rule.name)
def test_a_function_that_is_gone_is_told_and_so_is_each_parameter_and_text(package, rule):
    file = package / rule.file
    source = file.read_text()
    rewrite(file, Without(functions={rule.name.rpartition(".")[2]}))
    assert f"{rule.file}: there is no {rule.name}" in differences(package)
    file.write_text(source)
    rewrite(file, Without(params=set(rule.params)))
    without(file, rule.says)
    told = differences(package)
    for param in rule.params:
        assert f"{rule.file}: {rule.name} has no parameter {param}" in told
    for text in rule.says:
        assert f"{rule.file}: {rule.name} nowhere says {text}" in told


@pytest.mark.parametrize("rule", rows(Fields), ids=lambda rule: rule.name)
def test_each_field_that_is_gone_is_told(package, rule):
    rewrite(package / rule.file, Without(fields=set(rule.fields)))
    told = differences(package)
    for field in rule.fields:
        assert f"{rule.file}: {rule.name} has no field {field}" in told


@pytest.mark.parametrize("rule", rows(Says), ids=lambda rule: rule.file)
def test_each_text_that_is_gone_is_told(package, rule):
    without(package / rule.file, rule.texts)
    told = differences(package)
    for text in rule.texts:
        assert f"{rule.file}: nowhere says {text}" in told


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("_torch/async_llm.py", "async def release", "def release", "AsyncLLM.release is not async"),
        (
            "_ray_utils.py",
            "def control_action_decorator",
            "async def control_action_decorator",
            "control_action_decorator is now async",
        ),
        (
            "llmapi/rlhf_utils.py",
            "    @control_action_decorator\n",
            "",
            "WorkerExtension.update_weights is not decorated by control_action_decorator",
        ),
        ("llmapi/llm_args.py", "class KvCacheConfig", "class KvConfig", "there is no class KvCacheConfig"),
        ("version.py", "1.2.1", "1.3.0", 'nowhere says __version__ = "1.2.'),
    ],
)
def test_a_function_of_another_kind_and_another_version_are_told(package, file, before, after, told):
    source = (package / file).read_text()
    assert before in source
    (package / file).write_text(source.replace(before, after))
    assert f"{file}: {told}" in differences(package)


def test_a_module_used_without_its_import_is_told(package):
    [rule] = rows(Imports)
    file = package / rule.file
    file.write_text(file.read_text().replace("def start(self) -> None: ...", "def start(self): gc.collect()"))
    assert differences(package) == [f"{rule.file}: uses gc without importing it: its callers get a NameError"]
    file.write_text("import gc\n" + file.read_text())
    assert differences(package) == []


@pytest.mark.parametrize("rule", rows(LacksMethod), ids=lambda rule: rule.file)
def test_a_way_without_ray_is_told(package, rule):
    file = package / rule.file
    file.write_text(file.read_text() + f"\n    def {rule.method}(self): ...\n")
    assert differences(package) == [f"{rule.file}: a class now has {rule.method}: workers may be reached without Ray"]


class Without(ast.NodeTransformer):
    """A transformer that removes all functions, parameters and fields of these names."""

    def __init__(self, functions=frozenset(), params=frozenset(), fields=frozenset()):
        self.functions, self.params, self.fields = functions, params, fields

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        given = node.args
        for arguments in (given.args, given.kwonlyargs):
            arguments[:] = [arg for arg in arguments if arg.arg not in self.params]
        given.kwarg = None if given.kwarg and given.kwarg.arg in self.params else given.kwarg
        given.defaults, given.kw_defaults = [], [None] * len(given.kwonlyargs)
        return None if node.name in self.functions else node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node):
        return None if ast.unparse(node.target) in self.fields else node


def rewrite(file, transformer):
    tree = transformer.visit(ast.parse(file.read_text()))
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.body:
            node.body = [ast.Pass()]
    file.write_text(ast.unparse(ast.fix_missing_locations(tree)))


def without(file, texts):
    """Change the texts as code spells them, longest first, because one may hold another."""
    source = file.read_text()
    for text in sorted(texts, key=len, reverse=True):
        spoilt = "".join(letter if letter in "\"'[]().= " else "Z" for letter in text)
        source = source.replace(text, spoilt).replace(text.replace('"', "'"), spoilt.replace('"', "'"))
    file.write_text(source)
