"""Which package may import which, read from the source and seen in a fresh process; how large files and folders may be.

A room is a folder of the package. Modules are found by walking it, so a file added later is covered. Import
statements inside functions count: a late import crosses a wall as much as an early one.
"""

import ast
import json
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemo_simplerl

PACKAGE = "nemo_simplerl"
FOLDER = Path(nemo_simplerl.__file__).parent

# What a room may import of the package beside itself: rooms, or single modules of one. A room not named here
# may import any but those in ONLY_FOR.
MAY_IMPORT = {
    "config": {"durations", "user_files", "user_functions"},
    "reward": {"config", "durations", "python_child", "user_functions"},
    "algo": set(),
    "data": {"config", "durations", "files", "python_child", "reward", "user_files", "user_functions"},
    "parallel": set(),
    "model": {"config", "durations", "files", "parallel", "user_files", "user_functions"},
    "rollout": {
        *("config", "parallel.exchange", "parallel.products", "parallel.reductions", "parallel.waits"),
        *("durations", "user_files", "user_functions"),
    },
    "plan": {"config", "durations", "user_files", "user_functions"},
}
# Rooms and libraries that only these rooms or modules may import.
ONLY_FOR = {
    "nemo_simplerl.cli": {"cli", "__main__"},
    "nemo_simplerl.trainer": {"trainer", "cli", "dry"},
    "nemo_simplerl.dry": {"dry", "cli"},
    "megatron.core.parallel_state": {"parallel.mesh", "parallel.cpu"},
    "megatron.core.mpu": {"parallel.mesh", "parallel.cpu"},
    "nemo": {"model.conversion.nemo_toolkit"},
    "tensorrt_llm": {"rollout.trtllm.host", "rollout.trtllm.worker"},
    "ray": {"rollout.trtllm.ray_cluster"},
    "vllm": {"rollout.vllm.server", "rollout.vllm.extension"},
}
# Libraries that a room does without, however indirectly.
NEVER_LOADED = {
    "config": {"torch", "transformers", "megatron"},
    "reward": {"torch", "transformers", "megatron"},
    "algo": {"transformers", "megatron"},
    "data": {"megatron"},
    "rollout": {"megatron"},
    "plan": {"torch", "transformers", "megatron"},
}
# These wrap a framework that need not be installed.
ADAPTERS = {
    "nemo_simplerl.model.conversion.nemo_toolkit",
    "nemo_simplerl.rollout.trtllm.worker",
    "nemo_simplerl.rollout.vllm.extension",
}


def modules(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of `folder`, a package called `name`, and of everything below it."""
    yield name, folder / "__init__.py"
    for module in pkgutil.iter_modules([str(folder)]):
        if module.ispkg:
            yield from modules(folder / module.name, f"{name}.{module.name}")
        else:
            yield f"{name}.{module.name}", folder / f"{module.name}.py"


def imported_names(module: str, file: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names in import statements anywhere in the file; `from a import b` speaks of a and a.b.

    at_run_time: leave out those under `if TYPE_CHECKING`.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    tree = ast.parse(file.read_text())
    if at_run_time:
        tree.body = [node for node in tree.body if not _is_for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return names


def _is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def within(name: str, owner: str) -> bool:
    return name == owner or name.startswith(f"{owner}.")


def is_forbidden(importer: str, name: str) -> bool:
    """Whether `importer`, a module inside the package, may not import `name`."""
    for owned, owners in ONLY_FOR.items():
        if within(name, owned) and not any(within(importer, owner) for owner in owners):
            return True
    room = importer.partition(".")[0]
    if room not in MAY_IMPORT or not within(name, PACKAGE):
        return False
    target = name.removeprefix(PACKAGE).removeprefix(".")
    # `from nemo_simplerl.parallel import reductions` speaks of its parents too, which hold a docstring.
    return target != "" and not any(
        within(target, other) or within(other, target) for other in {room} | MAY_IMPORT[room]
    )


def violations(folder: Path) -> list[str]:
    """Each import of the package in `folder` that a rule forbids, as `module imports name`."""
    return [
        f"{module} imports {name}"
        for module, file in modules(folder, PACKAGE)
        for name in sorted(imported_names(module, file))
        if is_forbidden(module.removeprefix(PACKAGE).removeprefix("."), name)
    ]


def plant(folder: Path, file: str, source: str) -> None:
    """Write a module below `folder`, and make packages of the folders on the way."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for package in (folder, *(folder / parent for parent in Path(file).parents)):
        (package / "__init__.py").touch()
    path.write_text(source)


def circles(folder: Path) -> list[set[str]]:
    """Groups of modules of the package in `folder` that import one another, directly or through others.

    Imports for type checkers alone do not count: they load nothing.
    """
    files = dict(modules(folder, PACKAGE))
    # A package's __init__ holds a docstring: naming it on the way to a module is no dependency.
    needs = {
        module: {
            name
            for name in imported_names(module, file, at_run_time=True)
            if name in files and files[name].name != "__init__.py"
        }
        for module, file in files.items()
    }
    reached = {module: set(names) for module, names in needs.items()}
    while grown := [(module, more) for module in reached for more in [_behind(module, reached)] if more]:
        for module, more in grown:
            reached[module] |= more
    return [group for group in {frozenset(m for m in reached[x] if x in reached[m]) for x in reached} if group]


def _behind(module: str, reached: dict[str, set[str]]) -> set[str]:
    return set().union(*(reached[name] for name in reached[module])) - reached[module]


def test_no_modules_import_in_a_circle():
    assert circles(FOLDER) == []


def test_a_planted_circle_is_found(tmp_path):
    plant(tmp_path, "algo/a.py", "from nemo_simplerl.algo import b")
    plant(tmp_path, "algo/b.py", "def f():\n    from nemo_simplerl.data.c import g")
    plant(tmp_path, "data/c.py", "from nemo_simplerl.algo.a import h")
    plant(tmp_path, "data/d.py", "from nemo_simplerl.algo.a import h")
    assert circles(tmp_path) == [{f"{PACKAGE}.{name}" for name in ("algo.a", "algo.b", "data.c")}]


def test_no_folder_holds_more_than_15_modules():
    held = Counter(file.parent for _, file in modules(FOLDER, PACKAGE))
    assert {str(folder): count for folder, count in held.items() if count > 15} == {}


def test_no_module_imports_across_a_wall():
    assert violations(FOLDER) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        (
            "algo/gae.py",
            "def f():\n    import nemo_simplerl.model.network.head",
            "nemo_simplerl.model.network.head",
        ),
        ("algo/gae.py", "if True:\n    from ..model.network import head", "nemo_simplerl.model.network.head"),
        ("parallel/vocab.py", "from nemo_simplerl import config", "nemo_simplerl.config"),
        ("rollout/hf/engine.py", "from nemo_simplerl.parallel import mesh", "nemo_simplerl.parallel.mesh"),
        ("trainer/loop.py", "from nemo_simplerl.cli.main import main", "nemo_simplerl.cli.main"),
        ("eval/run.py", "from nemo_simplerl.trainer import loop", "nemo_simplerl.trainer.loop"),
        ("model/io.py", "from megatron.core import parallel_state as mpu", "megatron.core.parallel_state"),
        (
            "trainer/loop.py",
            "class A:\n    def f(self):\n        import nemo.collections",
            "nemo.collections",
        ),
        ("rollout/hf/engine.py", "import ray", "ray"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, source, expected):
    plant(tmp_path, file, source)
    module = f"{PACKAGE}.{file.removesuffix('.py').replace('/', '.')}"
    assert f"{module} imports {expected}" in violations(tmp_path)


def test_imports_within_the_walls_are_left_alone(tmp_path):
    for file, source in {
        "rollout/hf/engine.py": "from nemo_simplerl.parallel import reductions\nfrom . import base\nimport raylib",
        "parallel/mesh.py": "from megatron.core import parallel_state\nfrom . import cpu",
        "cli/train.py": "from nemo_simplerl.trainer.loop import train",
        "algo/loss.py": "import torch\nfrom nemo_simplerl.algo import gae",
    }.items():
        plant(tmp_path, file, source)
    assert violations(tmp_path) == []


# Loads each room in a process of its own, forked where nothing is loaded but the libraries that stand before it.
LOAD = """
import importlib, json, os, sys
stages, adapters = json.loads(sys.argv[1])
for library, rooms in stages:
    importlib.import_module(library)
    for room, names in rooms.items():
        if os.fork():
            if os.wait()[1]:
                raise SystemExit(f"{room} cannot be loaded")
            continue
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if name not in adapters or error.name.startswith("nemo_simplerl"):
                    raise
        print(json.dumps([room, sorted(sys.modules)]))
        raise SystemExit
"""


@pytest.fixture(scope="module")
def loaded_by_room() -> dict[str, tuple[list[str], set[str]]]:
    """Of each room its modules, and every module that a new process holds after importing them."""
    rooms = {
        room: [name for name, _ in modules(FOLDER / room, f"{PACKAGE}.{room}")]
        for room in MAY_IMPORT
        if (FOLDER / room).is_dir()
    }
    # Most seconds go into these libraries: rooms that may hold them start with them.
    stages: dict[str, dict[str, list[str]]] = {"json": {}, "torch": {}, "transformers.modeling_utils": {}}
    for room, names in rooms.items():
        never = NEVER_LOADED.get(room, set())
        first = "json" if "torch" in never else "torch" if "transformers" in never else "transformers.modeling_utils"
        stages[first][room] = names
    command = [sys.executable, "-c", LOAD, json.dumps([list(stages.items()), sorted(ADAPTERS)])]
    process = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent)
    assert process.returncode == 0, process.stderr
    answers = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
    return {room: (rooms[room], set(loaded)) for room, loaded in answers}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_loads_in_a_fresh_process_without_what_it_may_not_import(room, loaded_by_room):
    if not (FOLDER / room).is_dir():
        return
    names, loaded = loaded_by_room[room]
    assert set(names) - ADAPTERS <= loaded
    rooms = {name.split(".")[1] for name in loaded if name.startswith(f"{PACKAGE}.")}
    assert rooms <= {room} | {other.partition(".")[0] for other in MAY_IMPORT[room]}
    assert not NEVER_LOADED.get(room, set()) & {name.partition(".")[0] for name in loaded}


def test_no_file_is_over_400_lines():
    lengths = {
        str(file.relative_to(FOLDER)): len(file.read_text().splitlines()) for _, file in modules(FOLDER, PACKAGE)
    }
    assert {file: length for file, length in lengths.items() if length > 400} == {}


def test_every_function_of_the_page_fits_a_screen():
    page = FOLDER / "trainer" / "loop.py"
    if not page.exists():
        return
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(page.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert "ppo_step" in lengths
    assert {name: length for name, length in lengths.items() if length > 50} == {}
