"""Examines this machine: a report of its packages and devices, with the problems that would stop a run."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.config.engines import ENGINES
from nemo_simplerl.doctor import machine, packages, tested
from nemo_simplerl.doctor.vllm import look_at_vllm

# Name for --require -> the packages that it stands for; "gpu" is no package.
REQUIRABLE = {
    **{name: tuple(engine.packages) for name, engine in ENGINES.items() if engine.packages},
    "gpu": (),
    "nemo": ("nemo-toolkit",),
    "te": ("transformer-engine",),
    "apex": ("apex",),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found on this machine."""

    rows: dict[str, str]
    engine: str  # a line on TensorRT-LLM
    notes: list[str]  # of what may hurt a run; they change no exit status
    problems: list[str]

    @property
    def is_well(self) -> bool:
        return not self.problems


def examine_machine(required: Sequence[str] = ()) -> Report:
    """The report on this machine.

    required: names of REQUIRABLE; what is missing of them is a problem like any other.
    """
    versions = {name: packages.version(name) for name in (*packages.NEEDED, *packages.OPTIONAL)}
    gpus, num_gpus = machine.look_at_gpus(versions["torch"] is not None)
    vllm = look_at_vllm(num_gpus)
    versions["vllm"] = vllm.rows.get("vllm")  # of its own environment
    found = [
        vllm,
        gpus,
        machine.look_at_compiler(num_gpus),
        machine.look_at_space(num_gpus),
        machine.look_at_limits(num_gpus),
        machine.look_at_network(os.environ.get("MASTER_ADDR")),
    ]
    engine, engine_problems = packages.engine_findings(versions)
    python = {"python": platform.python_version()}
    rows = {**python, **packages.package_rows(versions), "tested": tested.what_ran(python | versions)}
    for part in found:
        rows |= part.rows
    requirements = packages.requirements_of("nemo_simplerl")
    return Report(
        rows=rows,
        engine=engine,
        notes=[
            *(note for part in found for note in part.notes),
            *packages.attention_notes(os.environ),
            *packages.outside_megatrons_own(packages.requirements_of("megatron-core"), versions),
            *tested.untested(python | versions),
        ],
        problems=[
            *(problem for part in found for problem in part.problems),
            *packages.missing(versions),
            *packages.outside_range(requirements, {name: packages.version(name) for name in _names(requirements)}),
            *packages.other_megatron(versions["megatron-core"]),
            *engine_problems,
            *lacking(required, versions, num_gpus, packages.is_real_apex()),
        ],
    )


def lacking(
    required: Sequence[str], versions: Mapping[str, str | None], num_gpus: int, is_real_apex: bool
) -> list[str]:
    """A problem for everything that is required and missing, with what its lack costs."""
    problems = [
        f"{name} is required here, and {package} is not installed: {packages.OPTIONAL[package]}"
        for name in required
        for package in REQUIRABLE[name]
        if versions[package] is None
    ]
    if "gpu" in required and not num_gpus:
        problems.append("gpu is required here, and torch can use none: training runs on CPUs, for tiny models")
    if "apex" in required and versions["apex"] is not None and not is_real_apex:
        problems.append(
            f"apex is required here, and the installed apex {versions['apex']} is another project of that name: "
            f"{packages.OPTIONAL['apex']}"
        )
    return problems


def _names(requirements: list[str]) -> set[str]:
    from packaging.requirements import Requirement

    return {Requirement(line).name for line in requirements}
