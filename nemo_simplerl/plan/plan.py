"""Makes the plan of a run: whether it fits a cluster, and what to change where it does not."""

from collections.abc import Sequence
from pathlib import Path

from nemo_simplerl.config.load import Examined, examine
from nemo_simplerl.config.placement import written
from nemo_simplerl.config.rules.layout import placement_notes
from nemo_simplerl.config.rules.machine import Machine
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster, Layout, warnings_of
from nemo_simplerl.plan.memory import Memory, memory
from nemo_simplerl.plan.report import Plan
from nemo_simplerl.plan.request import requested_layout, runnable_layout
from nemo_simplerl.plan.step_time import step_time
from nemo_simplerl.plan.suggest import faster_batch, first_change, shortage, suggestions

_WORTH_A_WARNING = 0.95  # of a step's time, that a larger batch of the rollout would leave of it


def make_plan(
    overrides: Sequence[str],
    cluster: Cluster,
    shape: ModelShape | None = None,
    suggest: bool = False,
    needs_files: bool = False,
) -> Plan:
    """The plan of a run on `cluster`, with every problem by the rules that training checks, and those of memory.

    shape: of the model, whatever model.path says; where model.path is not on this disk and ends in the name of a
    well-known model, that one's is taken unless `needs_files`. The cluster's machines are assumed to have what the
    container has.
    """
    has_gpu, known = not cluster.gpu.is_cpu, {} if needs_files else KNOWN_MODELS
    machine = Machine(has_gpu=has_gpu, has_transformer_engine=has_gpu, ranks_per_node=cluster.gpus_per_node)
    found = examine(overrides, cluster.world_size, machine, shape, known)
    problems = list(found.problems)
    layout, wished = runnable_layout(found, cluster), requested_layout(found, cluster)
    used = None if layout is None else memory(layout)
    if layout is not None and used is not None:
        problems += _memory_problems(layout, used)
    why_no_time = None if layout is None else _why_no_time(layout, problems)
    timed = layout if why_no_time is None else None
    fitting, refused = suggestions(wished) if suggest and wished is not None else ([], [])
    return Plan(
        cluster=cluster,
        source=_source(found, shape),
        problems=problems,
        warnings=[] if layout is None else _warnings(found.config, layout, is_timed=timed is not None),
        layout=layout,
        memory=used,
        time=None if timed is None else step_time(timed),
        why_no_time=why_no_time,
        first_change=None if layout is None or used is None or used.fits else _first_change(layout),
        suggestions=fitting if suggest else None,
        refusals=refused,
    )


def _warnings(config: Config, layout: Layout, *, is_timed: bool) -> list[str]:
    of_time = _warnings_of_time(layout) if is_timed else []
    return [*warnings_of(layout), *placement_notes(config, layout.places), *of_time]


def _source(found: Examined, shape: ModelShape | None) -> str | None:
    """Where the sizes of the models are from, in a line for the reader; None where they are not known."""
    if found.shape is None:
        return None
    config = found.config
    if found.is_critic_known and config.algo.has_critic:
        critic = f"; critic: {_published(str(config.critic.path))}"
    else:
        critic = "" if found.critic_shape is None else f"; critic: {config.critic.path}"
    path = config.model.path
    if shape is not None:
        return f"sizes of --shape; files of the run were not looked for{critic}"
    if not found.has_files:
        return f"{_published(path)}, and files of the run were not looked for{critic}"
    return f"sizes of {path if Path(path).exists() else 'model.create'}{critic}"


def _published(path: str) -> str:
    return f"{path} is not on this disk: sizes are those published for {Path(path).name}"


def _why_no_time(layout: Layout, problems: Sequence[str]) -> str | None:
    """Why the time of a step is not estimated; None where it is."""
    if problems:
        return "no time is estimated: the run cannot start as it is"
    if layout.cluster.gpu.is_cpu:
        return (
            "no time is estimated: how fast these CPUs are is not known; "
            "trainer.max_steps=3 with a trainer.run_dir of its own measures it"
        )
    return None


def _memory_problems(layout: Layout, used: Memory) -> list[str]:
    problems = []
    for room in used.rooms:
        where = "" if layout.places.is_shared else f" on ranks {written(room.ranks)}"
        for phase in room.phases:
            if phase.peak > room.capacity:
                parts = sorted(phase.parts.items(), key=lambda part: -part[1])
                listed = ", ".join(f"{name} {count / 2**30:.1f}" for name, count in parts[:4])
                problems.append(
                    f"memory: {phase.name}{where} needs {phase.peak / 2**30:.1f} GiB, a {layout.cluster.gpu.name} has "
                    f"room for {room.capacity / 2**30:.1f} ({listed})."
                )
    if used.cache.sequences < 1:
        longest = layout.prompt_tokens + layout.response_tokens
        problems.append(
            "memory: the KV cache has room for no sequence of rollout.max_prompt_tokens + max_response_tokens = "
            f"{longest} tokens, {longest * used.cache.bytes_per_token / 2**30:.2f} GiB each. Shorten them, or leave "
            "the engine more memory."
        )
    return problems


def _warnings_of_time(layout: Layout) -> list[str]:
    """What the rollout waits for, where a larger batch would spare a good part of a step and fits."""
    if (change := faster_batch(layout)) is None:
        return []
    before, after = step_time(layout), change.time
    if after.total.middle > _WORTH_A_WARNING * before.total.middle:
        return []
    found = before.decoding
    why = "waits for launches of kernels" if found.is_host_bound else "reads all weights"
    return [
        f"the rollout {why} in each of {found.steps:.0f} decoding steps. {change.text} makes them "
        f"{after.decoding.steps:.0f} and leaves {change.memory.headroom / 2**30:.1f} GiB: a rollout of "
        f"{after.phases['rollout'].low:.0f} to {after.phases['rollout'].high:.0f} s in place of "
        f"{before.phases['rollout'].low:.0f} to {before.phases['rollout'].high:.0f} s, estimated."
    ]


def _first_change(layout: Layout) -> str:
    found = first_change(layout)
    if found is None:
        return "more or larger GPUs; no single setting helps."
    change, is_enough = found
    if is_enough:
        return f"{change.text} makes it fit."
    return f"{change.text} helps most, and still {shortage(change.memory)}."
