"""Rules that look at this machine: its files, packages and GPU. Kept apart so that `check` stays pure."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nemo_simplerl.config.engines import ENGINES
from nemo_simplerl.config.forms.folder import form_of
from nemo_simplerl.config.rules.runner import run_rules
from nemo_simplerl.config.schema import Config
from nemo_simplerl.user_functions import require_usable, user_function

# The file that marks a Hugging Face folder, an unpacked .nemo or a training checkpoint.
_MODEL_FILES = ("config.json", "model_config.yaml", "manifest.json")
# The values of data.generate, each of which has problems of its own.
MADE_TASKS = ("arithmetic", "word_problems", "two_step_problems")
# Transformer Engine's attention by the variable that switches it off with "0".
ATTENTION_SWITCHES = {"NVTE_FLASH_ATTN": "flash", "NVTE_FUSED_ATTN": "fused", "NVTE_UNFUSED_ATTN": "unfused"}
# Endings of the files that make a model: settings, weights, tokenizer. Others, as README.md, need not be there.
_MODEL_ENDINGS = (".json", ".yaml", ".safetensors", ".jinja", ".nemo", ".distcp", ".pt")


@dataclass(frozen=True, kw_only=True)
class Machine:
    has_gpu: bool
    has_transformer_engine: bool
    has_wandb: bool = True
    has_gradient_fusion: bool = True  # Apex's extension
    attention: str | None = "auto"  # see attention_chosen
    has_files: bool = True  # the run's files, those of its models apart, would be where this machine has them
    is_critic_known: bool = False  # critic.path is planned for by name, and need not be here
    ranks_per_node: int | None = None  # None: not known
    is_this_one: bool = False  # not one that is only planned for: programs of other environments are looked for


def this_machine() -> Machine:
    """This machine as far as it shows without importing torch: NVIDIA's device files and the installed packages."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    devices = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # dxg: the GPU under WSL
    return Machine(
        has_gpu=devices and not hidden,
        has_transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
        has_wandb=_is_installed("wandb"),
        has_gradient_fusion=importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        attention=attention_chosen(os.environ),
        ranks_per_node=ranks_per_node(),
        is_this_one=True,
    )


def ranks_per_node() -> int | None:
    """The ranks on each machine, as torchrun and scripts/env.sh say; None where nobody does."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or None


def attention_chosen(environ: Mapping[str, str]) -> str | None:
    """The kind of attention that variables leave to Transformer Engine: `auto` is its own choice, None none at all.

    Megatron takes one kind or its choice among all. Where two are left that is the faster one, unless unfused attention
    alone is off, which Transformer Engine would take last.
    """
    left = {kind for name, kind in ATTENTION_SWITCHES.items() if environ.get(name) != "0"}
    if {"flash", "fused"} <= left:
        return "auto"
    return next((kind for kind in ("fused", "flash", "unfused") if kind in left), None)


def can_compile() -> bool:
    """Whether torch.compile, by which elementwise work is fused, can work here."""
    return why_not_compile() is None


def why_not_compile() -> str | None:
    """What keeps torch.compile from working; None where it is on and finds a C compiler and Python's headers."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "TORCHDYNAMO_DISABLE=1 is set: unset it"
    if c_compiler() is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "no C compiler with the headers of Python is there: on Debian or Ubuntu, apt install gcc python3-dev"
    return None


def c_compiler() -> str | None:
    """The C compiler that torch.compile and Triton take: CC, gcc or clang; None without any."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of its name in the working directory is none: it holds no code."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_machine(config: Config, machine: Machine, reported: frozenset[str] = frozenset()) -> list[str]:
    """Problems of files, packages and devices. Rules that would read a key in `reported` are skipped."""
    return run_rules(config, reported, [partial(rule, machine=machine) for rule in _RULES])


def _transformer_engine_is_there(config: Config, machine: Machine) -> Iterator[str]:
    if config.model.transformer_engine and not (machine.has_gpu and machine.has_transformer_engine):
        yield (
            f"model.transformer_engine=true needs {_lacking(machine)}. "
            "Set model.transformer_engine=null to use it only where it is there, "
            "or work in the container image, which has it."
        )


def _attention_is_left(config: Config, machine: Machine) -> Iterator[str]:
    uses_engine = config.model.transformer_engine is not False and machine.has_gpu and machine.has_transformer_engine
    if uses_engine and machine.attention is None:
        yield (
            f"{', '.join(f'{name}=0' for name in ATTENTION_SWITCHES)} leave Transformer Engine no attention. "
            "Unset one of them, or set model.transformer_engine=false."
        )


def _kernels_are_there(config: Config, machine: Machine) -> Iterator[str]:
    model = config.model
    asked = {"apply_rope_fusion=true": model.apply_rope_fusion, f"fp8={model.fp8}": model.fp8}
    for setting in (name for name, value in asked.items() if value):
        if model.transformer_engine is False:
            yield (
                f"model.{setting} is a kernel of Transformer Engine, and model.transformer_engine=false. "
                "Set model.transformer_engine=null, or leave the kernel out."
            )
        elif not (machine.has_gpu and machine.has_transformer_engine):
            yield f"model.{setting} needs {_lacking(machine)}. Leave it at null."
    if model.gradient_accumulation_fusion and not (machine.has_gpu and machine.has_gradient_fusion):
        yield (
            "model.gradient_accumulation_fusion=true needs a GPU and Apex's extension fused_weight_gradient_mlp_cuda, "
            "and not both are there. Set it to false."
        )


def _wandb_is_there(config: Config, machine: Machine) -> Iterator[str]:
    if config.trainer.wandb.enabled and not machine.has_wandb:
        yield (
            "trainer.wandb.enabled=true needs the package wandb, which is not installed. "
            'Install it with: pip install "nemo-simplerl[wandb]", or set trainer.wandb.enabled=false.'
        )


def _engine_can_start(config: Config, machine: Machine) -> Iterator[str]:
    if machine.is_this_one:
        for rule in ENGINES[config.rollout.engine].machine_rules:
            yield from rule(config)


def _context_parallel_can_run(config: Config, machine: Machine) -> Iterator[str]:
    size = config.actor.context_parallel_size
    if size == 1:
        return
    lacks_engine = not (machine.has_gpu and machine.has_transformer_engine)
    reason = (
        f"needs {_lacking(machine)}: attention across the ranks of one sequence exists only in Transformer Engine's "
        "GPU kernels"
        if lacks_engine
        else "is not supported yet: the passes of this version do not cut sequences over ranks"
    )
    yield f"actor.context_parallel_size={size} {reason}. Set actor.context_parallel_size=1."


def _run_dir_can_be_written(config: Config, machine: Machine) -> Iterator[str]:
    yield from _writable_folder("trainer.run_dir", config.trainer.run_dir)


def _sft_output_can_be_written(config: Config, machine: Machine) -> Iterator[str]:
    if config.sft.output is not None:
        yield from _writable_folder("sft.output", config.sft.output)


def _model_can_be_read(config: Config, machine: Machine) -> Iterator[str]:
    yield from _readable_model("model.path", config.model.path)


def _critic_can_be_read(config: Config, machine: Machine) -> Iterator[str]:
    if config.critic.path is not None:
        yield from _readable_model("critic.path", config.critic.path)


def _train_file_exists(config: Config, machine: Machine) -> Iterator[str]:
    yield from _file("data.train_path", config.data.train_path, config, machine)


def _eval_file_exists(config: Config, machine: Machine) -> Iterator[str]:
    if config.data.eval_path is not None:
        yield from _file("data.eval_path", config.data.eval_path, config, machine)


def _sft_file_exists(config: Config, machine: Machine) -> Iterator[str]:
    if config.sft.output is not None and config.data.sft_path is not None:
        yield from _file("data.sft_path", config.data.sft_path, config, machine, made_by=("arithmetic",))


def _examples_file_exists(config: Config, machine: Machine) -> Iterator[str]:
    if isinstance(config.data.examples, str):
        yield from _file("data.examples", config.data.examples, config, machine, made_by=())


def _sft_eval_file_exists(config: Config, machine: Machine) -> Iterator[str]:
    path = config.data.sft_eval_path
    is_read = machine.has_files and config.sft.output is not None and config.sft.eval_every
    if is_read and path is not None and not Path(path).is_file():
        yield (
            f"data.sft_eval_path={path!r} is not a file (looked for {Path(path).absolute()}). Give a file of held-out "
            "demonstrations, or data.sft_eval_path=null."
        )


def _critic_exists(config: Config, machine: Machine) -> Iterator[str]:
    if config.critic.path is None or machine.is_critic_known:
        return
    path = Path(config.critic.path)
    if not path.is_file() and not form_of(path) and not any((path / name).is_file() for name in _MODEL_FILES):
        yield (
            f"critic.path={config.critic.path!r} is no model: no .nemo file, no folder with one of "
            f"{', '.join(_MODEL_FILES)}, and none of NeMo 2, Megatron-Bridge or Megatron-LM. "
            "Give a saved critic, or critic.path=null to start from model.path with a fresh value head."
        )


def _tokenizer_exists(config: Config, machine: Machine) -> Iterator[str]:
    if config.model.tokenizer is not None and not Path(config.model.tokenizer).is_dir():
        yield (
            f"model.tokenizer={config.model.tokenizer!r} is not a folder. "
            "Give a folder with tokenizer.json, or model.tokenizer=null to use the one in model.path."
        )


def _reward_function_fits(config: Config, machine: Machine) -> Iterator[str]:
    if config.reward.function is not None:
        try:
            function = user_function(config.reward.function)
            if machine.has_files or function.file.exists():
                require_usable(function)
        except ValueError as error:
            yield f"reward.function={config.reward.function!r} {error}."


def _file(
    key: str, path: str, config: Config, machine: Machine, made_by: Sequence[str | None] = MADE_TASKS
) -> Iterator[str]:
    """made_by: the values of data.generate under which the file is written where it is missing."""
    if not machine.has_files:
        return
    if not os.path.isfile(path) and config.data.generate not in made_by:
        made = f", or data.generate={made_by[0]} to have {made_by[0]} problems written there" if made_by else ""
        yield f"{key}={path!r} is not a file (looked for {Path(path).absolute()}). Give {key}=FILE{made}."
    elif os.path.exists(path) and not os.access(path, os.R_OK):
        yield f"{key}: this user has no permission to read {path}. Change the permissions, or name another file."


def why_not_writable(path: str | Path) -> str | None:
    """What keeps a folder from being made or written: a file in its way, or missing permission. None: nothing does."""
    nearest = os.path.abspath(path)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        return f"cannot be a folder: {nearest} is a file. Name another folder."
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"cannot be written: this user has no permission in {nearest}. Name another folder."
    return None


def _writable_folder(key: str, path: str) -> Iterator[str]:
    if reason := why_not_writable(path):
        yield f"{key}={path!r} {reason}"


def _readable_model(key: str, path: str) -> Iterator[str]:
    files = [path]
    if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
        files = [entry.path for entry in os.scandir(path)]
    broken = sorted(file for file in files if (file == path or file.endswith(_MODEL_ENDINGS)) and _is_broken_link(file))
    hidden = sorted(file for file in files if _is_hidden(file))
    if broken:
        links = ", ".join(f"{file} is a link to {os.path.realpath(file)}, which is not there" for file in broken[:3])
        yield f"{key}: {links}. Fetch the model again."
    if hidden:
        yield f"{key}: this user has no permission to read {', '.join(hidden[:3])}. Change the permissions."


def _is_broken_link(file: str) -> bool:
    return os.path.islink(file) and not os.path.exists(file) and not _is_hidden(file)


def _is_hidden(file: str) -> bool:
    """Whether the file is there, as far as this user may know, and may not be read by this user."""
    try:
        os.stat(file)
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(file, os.R_OK)


def _lacking(machine: Machine) -> str:
    lacking = [] if machine.has_gpu else ["a GPU, and none is visible"]
    if not machine.has_transformer_engine:
        lacking.append("the package transformer_engine, which is not installed")
    return " and ".join(lacking)


_RULES = (
    _transformer_engine_is_there,
    _attention_is_left,
    _kernels_are_there,
    _wandb_is_there,
    _engine_can_start,
    _context_parallel_can_run,
    _run_dir_can_be_written,
    _sft_output_can_be_written,
    _model_can_be_read,
    _critic_can_be_read,
    _train_file_exists,
    _eval_file_exists,
    _sft_file_exists,
    _sft_eval_file_exists,
    _examples_file_exists,
    _critic_exists,
    _tokenizer_exists,
    _reward_function_fits,
)
