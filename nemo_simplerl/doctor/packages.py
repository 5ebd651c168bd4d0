"""Examines the packages that a run uses: which are there, whether their versions fit, what is lost without them."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nemo_simplerl.config.engines import ENGINES
from nemo_simplerl.config.rules.machine import ATTENTION_SWITCHES, attention_chosen

NEEDED = ("torch", "megatron-core", "transformers")
# Distribution -> what is lost without it.
OPTIONAL = {
    "transformer-engine": "GPUs train with Megatron's local layers, not with its fused ones",
    "apex": "torch's Adam and unfused gradient scaling on GPUs, unless transformer-engine is there",
    "nemo-toolkit": "`convert --verify` cannot ask NeMo's own connector",
    **{name: lost for engine in ENGINES.values() for name, lost in engine.packages.items()},
}


def version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_rows(versions: Mapping[str, str | None]) -> dict[str, str]:
    return {name: found or f"absent: {OPTIONAL.get(name, 'no run starts')}" for name, found in versions.items()}


def missing(versions: Mapping[str, str | None]) -> list[str]:
    """A problem for each missing package that every run needs."""
    return [f"{name} is required and not installed" for name in NEEDED if not versions[name]]


def outside_range(requirements: list[str], installed: Mapping[str, str | None]) -> Iterator[str]:
    """A problem for each installed package whose version the project's own requirements exclude.

    requirements: lines as in packaging metadata; those of extras are left out.
    """
    for requirement in map(Requirement, requirements):
        found = installed.get(requirement.name)
        if found is None or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is installed, and nemo_simplerl needs {requirement.specifier}"


def requirements_of(distribution: str) -> list[str]:
    """A distribution's requirements; empty where it is not installed, as a checkout that runs where it lies."""
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def other_megatron(recorded: str | None) -> Iterator[str]:
    """A problem where Python imports another Megatron-core than the installed distribution's version says.

    NVIDIA's images keep a source tree of Megatron on the path, which would hide one that pip installs.
    """
    spec = importlib.util.find_spec("megatron.core") if importlib.util.find_spec("megatron") else None
    if spec is None or spec.origin is None or recorded is None:
        return
    info = Path(spec.origin).with_name("package_info.py")
    numbers = (
        dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)", info.read_text(), re.MULTILINE)) if info.is_file() else {}
    )
    imported = ".".join(numbers.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))
    if not recorded.startswith(imported):
        yield f"megatron-core {recorded} is installed, but Python imports {imported} from {info.parent}"


def outside_megatrons_own(requirements: list[str], versions: Mapping[str, str | None]) -> Iterator[str]:
    """A note where Transformer Engine is of a version that Megatron-core does not name for itself.

    requirements: lines of Megatron-core's metadata, where an extra names Transformer Engine.
    """
    found = versions.get("transformer-engine")
    ranges = {str(one.specifier) for one in map(Requirement, requirements) if one.name == "transformer-engine"} - {""}
    if found is None or not ranges or any(SpecifierSet(one).contains(found, prereleases=True) for one in ranges):
        return
    yield (
        f"transformer-engine {found} is outside what megatron-core {versions['megatron-core']} names for itself, "
        f"{' or '.join(sorted(ranges))}. Of 2.9 to 2.18 the names and arguments that Megatron-core 0.16.1 uses were "
        "read, and all are there; where its layers fail, model.transformer_engine=false goes without"
    )


def attention_notes(environ: Mapping[str, str]) -> Iterator[str]:
    """A note where variables keep Transformer Engine from a kind of attention."""
    if off := [f"{name}=0" for name in ATTENTION_SWITCHES if environ.get(name) == "0"]:
        chosen = attention_chosen(environ)
        rest = (
            f"trains with {chosen} attention" if chosen else "is left no attention, and no run with its layers starts"
        )
        yield f"{', '.join(off)}: Transformer Engine {rest}"


def is_real_apex() -> bool:
    """Whether the apex here is NVIDIA's: PyPI has another project of that name."""
    return importlib.util.find_spec("amp_C") is not None


def engine_findings(versions: Mapping[str, str | None]) -> tuple[str, list[str]]:
    """A line that compares the installed TensorRT-LLM with the calls that the adapter makes, and the problems."""
    from nemo_simplerl.rollout.trtllm.contract import contract, differences, installed_source, source_release

    source = installed_source()
    if source is None:
        return f"tensorrt-llm is not installed: {OPTIONAL['tensorrt-llm']}", []
    found, release = differences(source), source_release(source)
    rows = len(contract(release)) if release else 0
    line = f"tensorrt-llm in {source}: {rows} things that the adapter uses, {len(found)} differences"
    problems = [f"tensorrt-llm {difference}" for difference in found]
    if versions["ray"] is None:
        problems.append("tensorrt-llm is installed and ray, which its refit works through, is not")
    return line, problems
