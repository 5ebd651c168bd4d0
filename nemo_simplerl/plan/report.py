"""The plan of a run, and its forms as text and as one JSON object."""

from dataclasses import dataclass
from typing import Any

from nemo_simplerl.config.placement import in_words, nodes_of, written
from nemo_simplerl.plan import seconds
from nemo_simplerl.plan.layout import Cluster, Layout
from nemo_simplerl.plan.memory import Memory, Room
from nemo_simplerl.plan.seconds import Seconds
from nemo_simplerl.plan.shapes import rank_parameters
from nemo_simplerl.plan.step_time import StepTime, Traffic, mean_tokens
from nemo_simplerl.plan.suggest import Change, Refusal
from nemo_simplerl.plan.timeline import longest_chain

_SHOWN = 5  # suggestions and refusals in the text
_COST = "estimated seconds of a step, the middle of a range; docs/performance.md has the model and its assumptions"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run on a cluster. layout and memory are None where the problems leave them unknown."""

    cluster: Cluster
    source: str | None  # where the models' sizes are from; None: they are not known
    problems: list[str]
    warnings: list[str]
    layout: Layout | None
    memory: Memory | None
    time: StepTime | None  # of a step
    why_no_time: str | None  # where there is a layout and no time
    first_change: str | None
    suggestions: list[Change] | None  # None: not asked for
    refusals: list[Refusal]

    @property
    def can_run(self) -> bool:
        return not self.problems


def numbers(layout: Layout, memory: Memory) -> dict[str, Any]:
    """Counts of a step by name. Tokens are those of the longest sequences, so they are upper bounds."""
    longest = layout.prompt_tokens + layout.response_tokens
    roles = {
        f"{name}_{key}": value
        for name, sizes in layout.sizes.items()
        for key, value in {
            "updates_per_step": layout.samples * layout.epochs // sizes.update,
            "micro_batches_per_update": layout.of(name).micro_batches(sizes),
        }.items()
    }
    return {
        "parameters": rank_parameters(layout.shape),
        "data_parallel_size": layout.data,
        "samples_per_step": layout.samples,
        "samples_per_rank": layout.samples // layout.data,
        "max_tokens_per_step": layout.samples * longest,
        **roles,
        "engines": layout.num_engines,
        "kv_bytes_per_token": memory.cache.bytes_per_token,
        "kv_tokens_per_engine": memory.cache.tokens,
        "sequences_at_once_per_engine": memory.cache.sequences,
    }


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object: bytes, tokens and counts as plain values."""
    layout, memory, cluster = plan.layout, plan.memory, plan.cluster
    found: dict[str, Any] = {
        "can_run": plan.can_run,
        "cluster": {
            "nodes": cluster.nodes,
            "gpus_per_node": cluster.gpus_per_node,
            "gpu": cluster.gpu.name,
            "gpu_bytes": cluster.gpu.total,
        },
        "source": plan.source,
        "problems": plan.problems,
        "warnings": plan.warnings,
        "placement": None if layout is None else _placement_as_dict(layout),
        "first_change": plan.first_change,
        "numbers": None,
        "memory": None,
        "step_seconds": None if plan.time is None else _time_as_dict(plan.time),
        "no_step_seconds": plan.why_no_time,
    }
    if layout is not None and memory is not None:
        found["numbers"] = numbers(layout, memory)
        found["memory"] = {
            "capacity": memory.capacity,
            "headroom": memory.headroom,
            "fits": memory.fits,
            "phases": _phases_as_dict(memory.tightest),
            "rooms": [
                {
                    "roles": list(room.roles),
                    "ranks": written(room.ranks),
                    "capacity": room.capacity,
                    "headroom": room.headroom,
                    "phases": _phases_as_dict(room),
                }
                for room in memory.rooms
            ],
            "host_per_node": memory.host,
        }
    if plan.suggestions is not None:
        found["cost"] = _COST
        found["suggestions"] = [
            {"keys": change.text, "cost": round(change.seconds, 3), "headroom": change.memory.headroom}
            for change in plan.suggestions
        ]
        found["refused"] = [{"tp": no.tensor, "pp": no.pipeline, "reason": no.reason} for no in plan.refusals]
    return found


def _placement_as_dict(layout: Layout) -> dict[str, Any]:
    """The ranks and the nodes of each role."""
    return {
        role: {
            "ranks": written(layout.places.of(role)),
            "nodes": nodes_of(layout.places.of(role), layout.cluster.gpus_per_node),
        }
        for role in layout.roles
    }


def _phases_as_dict(room: Room) -> dict[str, Any]:
    return {phase.name: {"peak": phase.peak, "parts": phase.parts} for phase in room.phases}


def _time_as_dict(time: StepTime) -> dict[str, Any]:
    def ends(found: Seconds) -> list[float]:
        return [float(f"{end:.4g}") for end in (found.low, found.high)]

    return {
        "total": ends(time.total),
        "phases": {name: ends(found) for name, found in time.phases.items()},
        "time_line": [
            {
                "phase": task.name,
                "roles": list(task.roles),
                "begins": ends(time.spans[task.name].begin),
                "ends": ends(time.spans[task.name].end),
                "waits_for": time.spans[task.name].waits_for,
            }
            for task in time.tasks
        ],
        "longest_chain": longest_chain(time.spans),
        "traffic": [
            {
                "from": one.source,
                "to": one.target,
                "what": one.what,
                "bytes_per_response_token": one.bytes_a_token,
                "bytes": round(one.size),
            }
            for one in time.traffic
        ],
        "decoding": {
            "steps": round(time.decoding.steps),
            "gpu": ends(time.decoding.gpu),
            "host": ends(time.decoding.host),
            "is_host_bound": time.decoding.is_host_bound,
        },
    }


def plan_as_text(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    cluster = plan.cluster
    lines = [
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name} ({_gib(cluster.gpu.total)} each), "
        f"{cluster.world_size} ranks"
    ]
    if plan.source is not None:
        lines.append(plan.source)
    if plan.layout is not None and plan.memory is not None:
        lines += _layout_lines(plan.layout, plan.memory)
        for room in plan.memory.rooms:
            lines += ["", *_memory_lines(room, is_only=len(plan.memory.rooms) == 1)]
        lines.append(_host_line(plan.memory))
    if plan.layout is not None and plan.time is not None:
        lines += ["", *_time_lines(plan.layout, plan.time)]
    if plan.why_no_time is not None:
        lines += ["", plan.why_no_time]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    if plan.suggestions is not None:
        if plan.layout is not None and not plan.layout.places.is_shared:
            lines += ["", "Suggestions keep the placement: other sizes of models and batches on the same ranks."]
        lines += ["", *_suggestion_lines(plan.suggestions, plan.refusals, in_seconds=not cluster.gpu.is_cpu)]
    if plan.problems:
        lines += ["", f"Cannot run, {len(plan.problems)} to mend:"]
        lines += [f"  - {problem}" for problem in plan.problems]
    if plan.first_change:
        lines.append(f"First change: {plan.first_change}")
    if not plan.problems:
        lines += ["", "Can run."]
    return "\n".join(lines)


def _layout_lines(layout: Layout, memory: Memory) -> list[str]:
    found = numbers(layout, memory)
    is_apart = layout.places.critic != layout.places.actor
    has_own_layout = layout.critic_cut is not None or (layout.critic is not None and is_apart)
    optimizer = "distributed" if layout.distributed_optimizer else "plain"
    return [
        f"{found['parameters'] / 1e9:.2f} B parameters: {_cut(layout)}, "
        + (f"critic {_cut(layout.of('critic'))}, " if has_own_layout else "")
        + f"recompute {layout.recompute or 'none'}, {optimizer} optimizer",
        f"a step: {layout.prompts} prompts x {layout.samples_per_prompt} = {found['samples_per_step']} samples, "
        f"{found['samples_per_rank']} a replica, at most {found['max_tokens_per_step'] / 1e6:.1f} M tokens",
        *(
            f"{name}: {found[f'{name}_updates_per_step']} updates a step, "
            f"{'at most ' if sizes.is_packed else ''}{found[f'{name}_micro_batches_per_update']} micro-batches of "
            f"{sizes.micro} {'of the longest samples' if sizes.is_packed else 'each'}"
            for name, sizes in layout.sizes.items()
        ),
        *_placement_lines(layout),
        f"rollout: {found['engines']} {layout.engine.name} engines, {found['kv_tokens_per_engine']} KV tokens of "
        f"{found['kv_bytes_per_token']} bytes each, {found['sequences_at_once_per_engine']} of the longest sequences "
        "at once",
    ]


def _cut(layout: Layout) -> str:
    return f"TP {layout.tensor} x PP {layout.pipeline} x DP {layout.data}"


def _placement_lines(layout: Layout) -> list[str]:
    """The ranks and nodes of each role, where not all roles live on all ranks."""
    if layout.places.is_shared:
        return []
    return [f"placement: {in_words(layout.places, layout.roles, layout.cluster.gpus_per_node)}"]


def _memory_lines(room: Room, *, is_only: bool) -> list[str]:
    """A table of memory in GiB, a row a phase and a column a kind of memory."""
    kinds = list(dict.fromkeys(_kind(name) for phase in room.phases for name in phase.parts))
    lines = [] if is_only else [f"{' and '.join(room.roles)}, ranks {written(room.ranks)}:"]
    lines.append("GiB on the fullest GPU" + "".join(f"{kind:>13}" for kind in (*kinds, "peak")))
    for phase in room.phases:
        sums = dict.fromkeys(kinds, 0)
        for name, count in phase.parts.items():
            sums[_kind(name)] += count
        cells = [*sums.values(), phase.peak]
        lines.append(
            f"{phase.name:<22}" + "".join(f"{count / 2**30:>13.1f}" if count else f"{'-':>13}" for count in cells)
        )
    lines.append(
        f"room for tensors {_gib(room.capacity)}; {room.worst.name} leaves {_gib(room.headroom)}"
        if room.headroom >= 0
        else f"room for tensors {_gib(room.capacity)}; {room.worst.name} lacks {_gib(-room.headroom)}"
    )
    return lines


def _host_line(memory: Memory) -> str:
    host = ", ".join(f"{name} {count / 2**30:.0f}" for name, count in memory.host.items())
    return f"host memory of a node, GiB: {sum(memory.host.values()) / 2**30:.0f} ({host})"


def _kind(name: str) -> str:
    """The column that a part belongs to; what both roles have is one column."""
    for kind in ("weights", "gradients", "optimizer"):
        if name in (f"actor {kind}", f"critic {kind}"):
            return kind
    return {
        "engine weights": "engine",
        "engine sampling": "engine",
        "engine KV cache": "KV cache",
        "rollout batch": "batch",
        "critic's batch": "batch",
        "activations": "activations",
        "reference weights": "reference",
    }.get(name, "buffers")


def _time_lines(layout: Layout, time: StepTime) -> list[str]:
    """The estimate of a step, and what the rollout waits for."""
    phases = ", ".join(f"{name} {_range(found)}" for name, found in time.phases.items())
    lines = [
        f"seconds of a step, estimated for samples of {mean_tokens(layout):.0f} tokens ({seconds.LENGTH:g} of the "
        f"longest): {_range(time.total)} ({phases})"
    ]
    found = time.decoding
    work = f"{_range(found.gpu.times(1e3))} ms of work for the GPU"
    launches = f"{_range(found.host.times(1e3))} ms of launches"
    if not found.host.high:
        lines.append(f"rollout: {found.steps:.0f} decoding steps of {work}")
    elif found.is_host_bound:
        lines.append(f"rollout: {found.steps:.0f} decoding steps, host-bound: {launches} each, beside {work}")
    else:
        lines.append(f"rollout: {found.steps:.0f} decoding steps of {work} each, beside {launches}")
    return lines if layout.places.is_shared else [*lines, *_time_line(layout, time)]


def _time_line(layout: Layout, time: StepTime) -> list[str]:
    """When each phase begins and ends on the ranks of its role, what makes the step so long, and what travels."""
    lines = [f"{'the time line of a step, seconds':<34}{'begins':>14}{'ends':>14}  waits for"]
    for ranks, roles in layout.places.sharing(layout.roles).items():
        busy = 0.0
        for task in time.tasks:
            if ranks in task.ranks:
                span = time.spans[task.name]
                busy += task.seconds.middle
                begins, ends = _range(span.begin), _range(span.end)
                lines.append(f"  {written(ranks):<9}{task.name:<23}{begins:>14}{ends:>14}  {span.waits_for or '-'}")
        idle = max(0.0, 1 - busy / time.total.middle)
        lines.append(f"  {written(ranks):<9}{' and '.join(roles)}: idle {idle:.0%} of the step")
    lines.append(f"the longest chain: {', '.join(longest_chain(time.spans))}")
    return [*lines, *(_traffic_line(one) for one in time.traffic)]


def _traffic_line(one: Traffic) -> str:
    a_token = "" if one.bytes_a_token is None else f"{one.bytes_a_token} bytes a response token, "
    size = f"{one.size / 1e9:.1f} GB" if one.size >= 1e9 else f"{one.size / 1e6:.0f} MB"
    return f"from {one.source} to {one.target}: {one.what}, {a_token}{size} a step to all of its ranks"


def _range(found: Seconds) -> str:
    low, high = (f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in (found.low, found.high))
    return low if low == high else f"{low} to {high}"


def _suggestion_lines(fitting: list[Change], refused: list[Refusal], *, in_seconds: bool) -> list[str]:
    lines = ["Layouts that fit, fastest first by the estimate of a step:" if fitting else "No layout fits."]
    for rank, change in enumerate(fitting[:_SHOWN], 1):
        time = (
            f"{_range(change.time.total)} s" if in_seconds else f"{change.seconds / fitting[0].seconds:.2f} x the time"
        )
        lines.append(f"  {rank}. {time}, {_gib(change.memory.headroom)} to spare: {change.text}")
    if refused:
        lines.append("Others:")
        reasons: dict[str, list[str]] = {}
        for no in refused:
            reasons.setdefault(no.reason, []).append(f"TP {no.tensor} x PP {no.pipeline}")
        lines += [f"  {', '.join(sizes)}: {reason}" for reason, sizes in reasons.items()]
    return lines


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
