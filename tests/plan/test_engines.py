"""Engines are asked, not named: which files may name one, and a plan for an engine that is one new module."""

import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest

import nemo_simplerl
from nemo_simplerl.config.engines import ENGINES, Engine
from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.plan import engines
from nemo_simplerl.plan.engines.base import footprint_of
from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan, plan_as_text

GIB = 2**30
FOLDER = Path(nemo_simplerl.__file__).parent
# The schema that lists the engines, the table of their rules and packages, what builds them, the engine's own, and the
# doctor, to whom vllm is a package.
MAY_NAME_AN_ENGINE = {
    "config/schema.py",
    "config/engines.py",
    "trainer/setup/engine.py",
    "plan/engines/trtllm.py",
    "plan/engines/vllm.py",
    "config/rules/engines/vllm.py",  # the package that is looked for
    "rollout/vllm/values.py",  # a value of one of its arguments
    *(f"doctor/{name}.py" for name in ("examine", "tested", "vllm")),
}
TOY = f"""
from nemo_simplerl.plan.engines.base import Cache
from nemo_simplerl.plan.layout import EngineSettings


class Toy:
    keys = ("rollout.max_batch_size",)
    process_bytes = {5 * GIB}
    refit_buckets = 3

    def settings(self, rollout):
        return EngineSettings(name="toy", tensor=2, batch=rollout.max_batch_size, cache_fraction=None, sleeps=True)

    def workspace(self, layout):
        return {GIB}

    def cache(self, layout, free_at_start, free_at_rollout):
        return Cache(bytes_per_token=1, bytes={2 * GIB}, tokens=2048, sequences=7)

    def between_rollouts(self, layout, weights, cache):
        return {{"toy box": 12345}}

    def before_refit(self, layout, weights, cache):
        return {{"engine weights": weights}}

    def in_host_memory(self, layout):
        return {{"toys": 10}}

    def changes(self, layout):
        return iter(())


FOOTPRINT = Toy()
"""


def files_that_match(pattern: str) -> set[str]:
    """Modules of the package, relative to it, with a match in their source."""
    files = FOLDER.rglob("*.py")
    return {str(file.relative_to(FOLDER)) for file in files if re.search(pattern, file.read_text())}


def test_an_engine_is_named_in_the_schema_the_table_build_and_its_own_modules_alone():
    assert files_that_match("""["'](trtllm|vllm)["']""") <= MAY_NAME_AN_ENGINE
    assert files_that_match(r"""engine(\.name)? *(==|!=|in) *[("']""") <= {"trainer/setup/engine.py"}


def test_every_engine_of_the_schema_has_rules_and_a_footprint_of_its_own():
    names = get_args(get_type_hints(RolloutConfig)["engine"])
    assert set(ENGINES) == set(names)
    for name in names:
        module = sys.modules[type(footprint_of(name)).__module__]
        assert module.__name__ == f"nemo_simplerl.plan.engines.{name}"


@pytest.fixture
def toy(monkeypatch, tmp_path) -> str:
    """An engine by the recipe: a name in the schema, an entry in the table, a module beside the other footprints."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    monkeypatch.setitem(RolloutConfig.__annotations__, "engine", Literal["hf", "trtllm", "toy"])
    monkeypatch.setitem(ENGINES, "toy", Engine())
    yield "rollout.engine=toy"
    sys.modules.pop("nemo_simplerl.plan.engines.toy", None)


def plan_of(tmp_path: Path, *overrides: str, suggest: bool = False) -> Plan:
    """A plan of the recipe on a node of two GPUs."""
    file = tmp_path / "train.json"
    file.write_text("[]")
    cluster = Cluster(nodes=1, gpus_per_node=2, gpu=gpu("h200-141g", 2))
    asked = ["experiment=simplerl_zero_qwen2.5_math_7b", f"data.train_path={file}", *overrides]
    asked += ["actor.tensor_model_parallel_size=2"]
    return make_plan(asked, cluster, KNOWN_MODELS["Qwen2.5-Math-1.5B"], suggest)


def test_a_plan_asks_the_footprint_of_a_new_engine(toy, tmp_path):
    plan, of_hf = plan_of(tmp_path, toy, suggest=True), plan_of(tmp_path)
    assert plan.problems == [] and plan.suggestions
    assert of_hf.memory.capacity - plan.memory.capacity == 5 * GIB
    parts = {phase.name: phase.parts for phase in plan.memory.phases}
    hf_parts = {phase.name: phase.parts for phase in of_hf.memory.phases}
    assert parts["rollout"]["engine sampling"] == GIB and parts["rollout"]["engine KV cache"] == 2 * GIB
    # An engine of two ranks holds half of the layers' weights on each.
    assert parts["rollout"]["engine weights"] < 0.6 * hf_parts["rollout"]["engine weights"]
    for phase in ("log-probabilities", "critic update", "actor update"):
        assert parts[phase]["toy box"] == 12345 and "engine weights" not in parts[phase]
    assert parts["refit"]["refit buckets"] == hf_parts["refit"]["refit buckets"] * 5 / 2  # two of the trainer's
    assert plan.memory.host["toys"] == 2 * 10
    assert "1 toy engines, 2048 KV tokens of 1 bytes each, 7 of the longest" in plan_as_text(plan)


def test_an_engine_without_a_footprint_is_not_planned_as_another():
    with pytest.raises(ValueError, match=r"rollout.engine=vapour cannot be planned.*plan/engines/vapour\.py"):
        footprint_of("vapour")
