"""The rollout engines by name: what the configuration and the doctor must know of one without importing it.

`plan` finds an engine's memory by the same name (plan/engines), and trainer/setup/engine.py makes the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_simplerl.config.rules.engines import trtllm, vllm
from nemo_simplerl.config.rules.layout import engines_fill_their_ranks, engines_stay_on_their_nodes
from nemo_simplerl.config.rules.runner import Rule


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine's rules, the ranges of its section, and the packages that it needs beside the trainer's."""

    ranges: Mapping[str, str] = field(default_factory=dict)  # of the numbers in rollout.NAME, by key below it
    rules: tuple[Rule, ...] = ()  # of the configuration alone; all run only where the engine is chosen
    shape_rules: tuple[Rule, ...] = ()  # that need the model's shape
    world_rules: tuple[Rule, ...] = ()  # that need the number of ranks
    node_rules: tuple[Rule, ...] = ()  # that need the number of ranks, and how many of them a node has
    machine_rules: tuple[Rule, ...] = ()  # that look at this machine
    packages: Mapping[str, str] = field(default_factory=dict)  # distribution -> what is lost without it


ENGINES = {
    "hf": Engine(),
    "trtllm": Engine(
        ranges=trtllm.RANGES,
        rules=(trtllm.every_token_has_its_logprob, trtllm.prompts_fit_one_pass),
        shape_rules=(trtllm.engine_splits_the_heads,),
        world_rules=(engines_fill_their_ranks,),
        node_rules=(engines_stay_on_their_nodes,),
        packages={
            "tensorrt-llm": "rollout.engine=hf works, rollout.engine=trtllm does not",
            "ray": "TensorRT-LLM cannot be refitted, so rollout.engine=trtllm does not work",
        },
    ),
    "vllm": Engine(
        ranges=vllm.RANGES,
        rules=(vllm.temperature_is_accepted,),
        shape_rules=(vllm.engine_splits_the_heads,),
        world_rules=(engines_fill_their_ranks,),
        node_rules=(engines_stay_on_their_nodes,),
        machine_rules=(vllm.its_python_is_there,),
        packages={"vllm": "rollout.engine=vllm does not work; `scripts/engine_env.sh vllm` makes its environment"},
    ),
}
