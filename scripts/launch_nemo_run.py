"""Trains with NeMo-Run as the launcher: on this machine, under SLURM from a login node, or on a cluster of SkyPilot's.

Needs NeMo-Run alone, which cannot share the trainer's environment; scripts/launch_env.sh makes one for it. `simplerl
plan` comes first, and nothing is started where the run cannot be. Under SLURM the job saves before its time is up,
queues again and goes on, by the same functions as scripts/slurm/submit.sh (scripts/slurm/job.sh).
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import nemo_run as run
from nemo_run.run.torchx_backend.packaging import package
from nemo_run.run.torchx_backend.schedulers.slurm import create_scheduler

ROOT = Path(__file__).resolve().parents[1]
TASK = "train"
RUN_DIR = "trainer.run_dir="


def main(argv: list[str]) -> int:
    """Exit status: 0, 1 where the run cannot be or has failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    named = [text.removeprefix(RUN_DIR) for text in args.overrides if text.startswith(RUN_DIR)]
    args.run_dir = Path(named[-1] if named else f"runs/{args.name}").expanduser().absolute()
    if problem := _problem(args):
        parser.error(problem)
    if not _can_run(args):
        return 1
    script, executor = _LAUNCHERS[args.executor](args)
    if args.dry_run:
        print(_shown(script, executor))
        return 0
    is_here = args.executor == "local"
    with run.Experiment(args.name, executor=executor) as experiment:
        experiment.add(script, name=TASK, tail_logs=is_here)
        experiment.run(detach=not is_here)
    # NeMo-Run itself ends with 0 where a task has failed.
    return int(is_here and any(job.state.name != "SUCCEEDED" for job in experiment.jobs))


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the command line, in words."""
    if args.executor == "slurm" and args.account is None:
        return "--executor slurm needs --account, as NeMo-Run's jobs do"
    if args.executor == "local" and args.nodes > 1:
        return f"--executor local is this machine alone, but --nodes is {args.nodes}; take slurm or skypilot"
    if any(character in str(args.run_dir) for character in "'\"${},%:"):
        return f"{RUN_DIR}{args.run_dir}: a job needs a plain path, without quotes, references or , % :"
    return None


def _can_run(args: argparse.Namespace) -> bool:
    """Whether `simplerl plan` lets the run through; it says why not. In the trainer's environment (VENV)."""
    plan = 'source "$0/scripts/env.sh" && prepare_env && require_plan "$@"'
    on_this_disk = [] if args.executor == "skypilot" else ["--files"]
    sizes = [str(args.nodes), str(args.gpus_per_node), args.gpu]
    words = ["bash", "-c", plan, str(ROOT), *sizes, *on_this_disk, *args.overrides]
    python = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(words, env=python).returncode == 0


def _local(args: argparse.Namespace) -> tuple[run.Script, run.LocalExecutor]:
    command = _in_words(ROOT / "scripts/train.sh", *args.overrides, f"{RUN_DIR}{args.run_dir}")
    lines = [f"cd {shlex.quote(os.getcwd())}", f"NPROC={args.gpus_per_node} exec {command}"]
    return run.Script(inline="\n".join(lines)), run.LocalExecutor(packager=run.Packager())


def _slurm(args: argparse.Namespace) -> tuple[run.Script, run.SlurmExecutor]:
    """The same node.sh as submit.sh starts. NeMo-Run's job would lose its work at a signal, and requeue whatever has
    failed (`retries`): job.sh takes over its srun."""
    command = _in_words(ROOT / "scripts/slurm/node.sh", "train", *args.overrides, f"{RUN_DIR}{args.run_dir}")
    node_log = f'{shlex.quote(str(args.run_dir))}/logs/node_"$SLURM_NODEID".log'
    lines = [f"cd {shlex.quote(os.getcwd())}", f"exec {command} > >(exec tee -a {node_log}) 2>&1"]
    job, run_dir = shlex.quote(str(ROOT / "scripts/slurm/job.sh")), shlex.quote(str(args.run_dir))
    executor = run.SlurmExecutor(
        account=args.account,
        partition=args.partition,
        time=args.time,
        nodes=args.nodes,
        ntasks_per_node=1,  # node.sh starts a rank a GPU
        gpus_per_node=None if args.gpu == "cpu" else args.gpus_per_node,
        mem="0",
        exclusive=True,
        signal=args.signal,
        container_image=args.container,
        container_mounts=_mounts(args),
        env_vars={"VENV": "system", "PYTHON": "python3"} if args.container else {},
        srun_args=["--mpi=none", "--cpu-bind=none", "--open-mode=append"],
        setup_lines=f"source {job}\ntake_srun {run_dir} {args.gpus_per_node}",
        additional_parameters=dict(option.split("=", 1) for option in args.sbatch),
        packager=run.Packager(),  # the checkout is on a file system that all nodes see
        tunnel=run.LocalTunnel(job_dir=""),
        retries=0,
    )
    return run.Script(inline="\n".join(lines)), executor


def _skypilot(args: argparse.Namespace) -> tuple[run.Script, run.SkypilotExecutor]:
    """The run directory is on the cluster's own disk: where machines may be taken away, take scripts/skypilot/."""
    _mend_skypilot()
    run_dir = f"{RUN_DIR}{args.run_dir.relative_to(Path.cwd()) if _is_below(args.run_dir) else args.run_dir}"
    executor = run.SkypilotExecutor(
        cloud=args.cloud,
        gpus=None if args.gpu == "cpu" else args.gpu.split("-")[0].upper(),
        gpus_per_node=args.gpus_per_node,
        num_nodes=args.nodes,
        cluster_name=args.name,
        container_image=f"docker:{args.container}" if args.container else None,
        env_vars={"VENV": "system", "PYTHON": "/usr/bin/python3"} if args.container else {},
        packager=run.GitArchivePackager(check_uncommitted_changes=True),  # it packs the last commit
    )
    return run.Script(inline=f"exec {_in_words('scripts/train.sh', *args.overrides, run_dir)}"), executor


_LAUNCHERS = {"local": _local, "slurm": _slurm, "skypilot": _skypilot}


def _mend_skypilot() -> None:
    """NeMo-Run 0.11 writes its task with a function that SkyPilot has moved since."""
    from sky.utils import common_utils, yaml_utils

    if not hasattr(common_utils, "dump_yaml_str"):
        common_utils.dump_yaml_str = yaml_utils.dump_yaml_str


def _shown(script: run.Script, executor: run.Executor) -> str:
    """What would be started: the batch script, SkyPilot's task, or the lines that run here."""
    if isinstance(executor, run.LocalExecutor):
        return script.inline
    with tempfile.TemporaryDirectory() as folder:
        executor.assign("dry", folder, TASK, TASK)
        app = package(TASK, script, executor)
        if isinstance(executor, run.SlurmExecutor):
            return create_scheduler("dry").submit_dryrun(app, executor).request.materialize()
        from sky.utils import yaml_utils

        (role,) = app.roles
        return yaml_utils.dump_yaml_str(executor.to_task(TASK, [role.entrypoint, *role.args]).to_yaml_config())


def _mounts(args: argparse.Namespace) -> list[str]:
    """What the run reads and writes, at the same places inside a container."""
    named = [os.environ.get(name) for name in ("SIMPLERL_MODEL_DIR", "SIMPLERL_DATA_DIR")]
    folders = dict.fromkeys([str(ROOT), os.getcwd(), str(args.run_dir), *(folder for folder in named if folder)])
    return [*(f"{folder}:{folder}" for folder in folders), *args.mount] if args.container else []


def _is_below(path: Path) -> bool:
    return path.is_relative_to(Path.cwd())


def _in_words(*words: object) -> str:
    return shlex.join(map(str, words))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        usage="%(prog)s [OPTION...] -- OVERRIDE...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--executor", choices=_LAUNCHERS, default="local")
    add("--name", default="simplerl", help="of the experiment, and of SkyPilot's cluster (default simplerl)")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    add("--gpus-per-node", type=int, default=8, metavar="G", help="ranks on each (default 8)")
    add("--gpu", default="h100-80g", metavar="NAME", help="one of `simplerl plan --help` (default h100-80g)")
    add("--dry-run", action="store_true", help="only print what would be started, after the plan")
    add("--container", metavar="IMAGE", help="image for pyxis or SkyPilot")
    add("--mount", action="append", default=[], metavar="FROM:TO", help="a further folder for the container")
    add("--account", help="of SLURM")
    add("--partition", help="of SLURM")
    add("--time", default="08:00:00", help="of an allocation of SLURM's (default 08:00:00)")
    add("--signal", default="B:USR1@300", help="SLURM's, when to save before the time is up (default B:USR1@300)")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="a further option of sbatch")
    add("--cloud", help="of SkyPilot, such as kubernetes")
    add("overrides", nargs="+", metavar="OVERRIDE", help="settings, as scripts/train.sh takes them")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
