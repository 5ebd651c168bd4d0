"""A real Slurm of two nodes on this machine's loopback, in a folder of its own, for tests of the job scripts.

Needs root, and Debian's slurm-wlm and munge, which are installed where apt can.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from debian import PATH, provide

from support.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
# cred_expire: a job that is queued again waits until its old credentials have expired, two minutes by default.
CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1,default_queue_depth=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path
    env: dict[str, str]  # what Slurm's commands need

    def call(self, *command: str, **env: str) -> str:
        """Standard output of one of Slurm's commands. Raises AssertionError with what it said where it fails."""
        done = subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Numbers of the jobs that wait or run."""
        return self.call("squeue", "--noheader", "--format=%i").split()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol tells of a job: JobState, ExitCode, Restarts, ..."""
        words = self.call("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout_s: float) -> dict[str, str]:
        """The job, once it is in one of the states. Raises AssertionError with its logs when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"after {timeout_s} s: {job}\n{self.logs()}"
            time.sleep(0.5)
        return job

    def logs(self) -> str:
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster, stopped at the end with whatever jobs it has. Raises Unavailable."""
    provide(PROGRAMS, ("slurm-wlm", "munge"))
    (folder / "state").mkdir(parents=True)
    controller, first, second = (free_port() for _ in range(3))
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, controller=controller, first=first, second=second))
    env = {
        "PATH": PATH,
        "HOME": os.environ.get("HOME", "/root"),
        "SLURM_CONF": str(conf),
    }
    found = Cluster(folder, env)
    with ExitStack() as stack:
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        paths = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={folder / file}" for name, file in {**paths, "log-file": "munged.log"}.items()]
        _start(stack, found, "munged", "--foreground", "--force", *options)
        _wait_until((folder / "munge.socket").exists, found)
        _start(stack, found, "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            _start(stack, found, "slurmd", "-D", "-N", node)
        _wait_until(lambda: _num_idle(found) == 2, found)
        stack.callback(_cancel_all, found)
        yield found


def _start(stack: ExitStack, found: Cluster, *command: str) -> None:
    """Run a daemon in the foreground until the stack is left."""
    name = "-".join([command[0], *(word for word in command[1:] if word in ("n1", "n2"))])
    with open(found.folder / f"{name}.out", "w") as log:
        process = subprocess.Popen(command, env=found.env, stdout=log, stderr=log, start_new_session=True)
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cancel_all(found: Cluster) -> None:
    with suppress(AssertionError):
        for number in found.jobs():
            found.call("scancel", number)
        _wait_until(lambda: not found.jobs(), found)


def _num_idle(found: Cluster) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%t"], env=found.env, capture_output=True, text=True
    )
    return done.stdout.split().count("idle")


def _wait_until(holds, found: Cluster, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"the cluster is not ready after {timeout_s} s\n{found.logs()}"
        time.sleep(0.2)
