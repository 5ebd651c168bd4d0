"""The contract with TensorRT-LLM: the double of each release keeps it, each broken row is reported, and the real
package is read where it is installed."""

import ast

import pytest

from fakes.releases import FAKES, PACKAGE, build
from nemo_simplerl.rollout.own_process.source_rules import (
    Fields,
    Function,
    Imports,
    LacksMethod,
    Says,
    broken,
    file_of,
    missing_imports,
)
from nemo_simplerl.rollout.trtllm.contract import contract, differences, installed_source, source_release
from nemo_simplerl.rollout.trtllm.releases import RELEASES

CONTRACT = contract(RELEASES["1.2"])


@pytest.fixture
def package(tmp_path):
    """A copy of the double's source, for the tests to break."""
    return build("1.2", tmp_path)


def test_the_installed_package_keeps_the_contract():
    source = installed_source()
    if source is None:
        pytest.skip("tensorrt-llm is not installed here; the container image has it")
    assert differences(source) == []


@pytest.mark.parametrize(("name", "others"), [("1.2", ["1.3", "1.4"]), ("1.3", ["1.2"]), ("1.4", ["1.2", "1.3"])])
def test_the_double_of_each_release_keeps_that_releases_contract(tmp_path, name, others):
    package = build(name, tmp_path)
    assert source_release(package) is RELEASES[name]
    assert broken(contract(RELEASES[name]), package) == []
    # 1.4 took something away, and asks for nothing that 1.3 did not have.
    assert [other for other, release in RELEASES.items() if broken(contract(release), package)] == others


def test_what_ray_no_longer_has_is_told_with_the_file_and_the_remedy(package, tmp_path):
    ray = tmp_path / "ray"
    (ray / "util").mkdir(parents=True)
    (ray / "__init__.py").touch()
    (ray / "util/placement_group.py").write_text("class PlacementGroup: ...\ndef placement_group(): ...\n")
    (ray / "util/scheduling_strategies.py").write_text("class PlacementGroupSchedulingStrategy: ...\n")
    assert list(missing_imports(package, "ray", ray)) == [
        f"executor/ray_executor.py imports {name} from ray.util.placement_group, which it has not"
        for name in ("PlacementGroupSchedulingStrategy", "get_current_placement_group")
    ]
    with (ray / "util/placement_group.py").open("a") as file:
        file.write("from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as _, x\n")
        file.write("try:\n    get_current_placement_group = None\nexcept KeyError: ...\n")
    [told] = missing_imports(package, "ray", ray)
    assert "imports PlacementGroupSchedulingStrategy" in told
    newer = build("1.4", tmp_path / "newer")  # which looks for the name in both places
    assert list(missing_imports(newer, "ray", ray)) == []


def test_the_installed_ray_has_all_that_each_release_imports(tmp_path):
    pytest.importorskip("ray")
    for name in RELEASES:
        assert differences(build(name, tmp_path / name)) == []


@pytest.mark.parametrize(
    "file", sorted({file_of(rule, FAKES / PACKAGE) for rule in CONTRACT if not isinstance(rule, LacksMethod)})
)
def test_a_file_that_is_gone_is_told_once(package, file):
    (package / file).unlink()
    told = [told for told in differences(package) if "cannot be read" in told]
    newest = file.replace("ray_executor", "ray/executor").replace("ray_gpu_worker", "ray/gpu_worker")
    assert [line.partition(" (")[0] for line in told] == [f"{newest}: cannot be read"]


def test_a_file_that_is_no_python_is_told(package):
    (package / "sampling_params.py").write_text("class SamplingParams(:")
    assert [told.partition(" (")[0] for told in differences(package)] == ["sampling_params.py: cannot be read"]


def rows(kind):
    return [rule for rule in CONTRACT if isinstance(rule, kind)]


@pytest.mark.parametrize("rule", rows(Function), ids=lambda rule: rule.name)
def test_a_function_that_is_gone_is_told_and_so_is_each_parameter_and_text(package, rule):
    file = package / file_of(rule, package)
    source = file.read_text()
    rewrite(file, Without(functions={rule.name.rpartition(".")[2]}))
    assert f"{file_of(rule, package)}: there is no {rule.name}" in differences(package)
    file.write_text(source)
    rewrite(file, Without(params=set(rule.params)))
    without(file, rule.says)
    told = differences(package)
    for param in rule.params:
        assert f"{file_of(rule, package)}: {rule.name} has no parameter {param}" in told
    for text in rule.says:
        assert f"{file_of(rule, package)}: {rule.name} nowhere says {text}" in told


@pytest.mark.parametrize("rule", rows(Fields), ids=lambda rule: rule.name)
def test_each_field_that_is_gone_is_told(package, rule):
    rewrite(package / file_of(rule, package), Without(fields=set(rule.fields)))
    told = differences(package)
    for field in rule.fields:
        assert f"{file_of(rule, package)}: {rule.name} has no field {field}" in told


@pytest.mark.parametrize("rule", rows(Says), ids=lambda rule: str(rule.file))
def test_each_text_that_is_gone_is_told(package, rule):
    without(package / file_of(rule, package), rule.texts)
    told = differences(package)
    for text in rule.texts:
        assert f"{file_of(rule, package)}: nowhere says {text}" in told


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("_torch/async_llm.py", "async def release", "def release", "AsyncLLM.release is not async"),
        (
            "serialization.py",
            "def loads",
            "async def loads",
            "loads is now async",
        ),
        (
            "llmapi/rlhf_utils.py",
            "    @control_action_decorator\n",
            "",
            "WorkerExtension.update_weights is not decorated by control_action_decorator",
        ),
        ("llmapi/llm_args.py", "class KvCacheConfig", "class KvConfig", "there is no class KvCacheConfig"),
        ("version.py", "1.2.1", "1.5.0", "says none of the releases that the adapter knows, 1.2, 1.3, 1.4"),
    ],
)
def test_a_function_of_another_kind_and_another_version_are_told(package, file, before, after, told):
    source = (package / file).read_text()
    assert before in source
    (package / file).write_text(source.replace(before, after))
    assert f"{file}: {told}" in differences(package)


def test_a_module_used_without_its_import_is_told(package):
    [rule] = rows(Imports)
    file = package / file_of(rule, package)
    imports = file.read_text()
    file.write_text(imports.replace("import gc\n", ""))
    assert differences(package) == [
        f"{file_of(rule, package)}: uses gc without importing it: its callers get a NameError"
    ]


@pytest.mark.parametrize("rule", rows(LacksMethod), ids=lambda rule: str(rule.file))
def test_a_way_without_ray_is_told(package, rule):
    file = package / file_of(rule, package)
    file.write_text(file.read_text() + f"\n    def {rule.method}(self): ...\n")
    assert differences(package) == [
        f"{file_of(rule, package)}: a class now has {rule.method}: workers may be reached without Ray"
    ]


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

    def visit_Assign(self, node):
        return None if ast.unparse(node.targets[0]) in self.fields else node


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
