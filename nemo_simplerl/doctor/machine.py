"""Examines the machine itself: GPUs, driver, disk space, limits and host names."""

import resource
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

from nemo_simplerl.config.rules.machine import c_compiler, can_compile

_DRIVER = Path("/proc/driver/nvidia/version")
_LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC, "memlock": resource.RLIMIT_MEMLOCK}
_SHM_BYTES = 2**30
_OPEN_FILES = 4096


@dataclass
class MachineFindings:
    """Facts about the machine by name, notes on what may hurt a run, and problems that stop one."""

    rows: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def look_at_gpus(has_torch: bool) -> tuple[MachineFindings, int]:
    """Findings on driver, CUDA and GPUs, and the number of GPUs that torch can use."""
    found = MachineFindings({"driver": _driver_in_words()})
    try:
        import torch
    except (ImportError, OSError) as error:
        found.rows["GPU"] = "not known"
        if has_torch:
            found.problems.append(f"torch cannot be imported: {error}")
        return found, 0
    found.rows["CUDA"] = f"{torch.version.cuda} (torch's)" if torch.version.cuda else "torch is built without it"
    if not torch.cuda.is_available():
        found.rows["GPU"] = "none that torch can use"
        if _DRIVER.exists():
            found.problems.append(
                "there is an NVIDIA driver, but torch cannot use a GPU: CUDA_VISIBLE_DEVICES hides them, the driver is "
                "too old for torch's CUDA, or the container was started without --gpus all"
            )
        return found, 0
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found.rows["GPU"] = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    found.rows["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found, len(devices)


def look_at_compiler(num_gpus: int) -> MachineFindings:
    """Findings on the C compiler, which work on a GPU is compiled with while a run goes on."""
    compiler = c_compiler()
    if compiler is None:
        row = "no C compiler (CC, gcc or clang)"
    else:
        row = f"{compiler}, {'with' if can_compile() else 'without'} the headers of Python"
    return MachineFindings({"compiler": row}, [] if can_compile() or not num_gpus else [_compiler_note(row)])


def _compiler_note(found: str) -> str:
    return (
        f"{found}: Megatron's fused elementwise kernels (torch.compile) are left out and steps are slower, and what "
        "uses Triton (Transformer Engine, TensorRT-LLM) fails when it compiles; on Debian or Ubuntu: "
        "apt install gcc python3-dev"
    )


def look_at_space(num_gpus: int) -> MachineFindings:
    found = MachineFindings({"disk": free_space(Path.cwd()), "shm": free_space(Path("/dev/shm"))})
    size = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    found.notes = shm_notes(size, num_gpus)
    return found


def look_at_limits(num_gpus: int) -> MachineFindings:
    soft = {name: resource.getrlimit(number)[0] for name, number in _LIMITS.items()}
    row = ", ".join(f"{name} {limit_in_words(value)}" for name, value in soft.items())
    return MachineFindings({"limits": row}, limit_notes(soft, num_gpus))


def look_at_network(master: str | None) -> MachineFindings:
    """Findings on ports and host names. master: the value of MASTER_ADDR, where it is set."""
    found = MachineFindings()
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
        found.rows["loopback"] = "a port can be opened"
    except OSError as error:
        found.rows["loopback"] = "no port can be opened"
        found.problems.append(f"no port of 127.0.0.1 can be opened, and ranks meet at one: {error}")
    name = socket.gethostname()
    found.rows["host name"] = addresses_in_words(name)
    if not addresses(name):
        found.notes.append(
            f"the host name {name} has no address; where ranks cannot connect, set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to the network device, or enter the name in /etc/hosts"
        )
    if master is not None:
        found.rows["MASTER_ADDR"] = addresses_in_words(master)
        if not addresses(master):
            found.problems.append(
                f"MASTER_ADDR={master} has no address here; set it to a name or number of the first machine"
            )
    return found


def limit_in_words(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def limit_notes(soft: dict[str, int], num_gpus: int) -> list[str]:
    """Notes on soft limits that are too low for a run."""
    notes = []
    if soft["nofile"] != resource.RLIM_INFINITY and soft["nofile"] < _OPEN_FILES:
        notes.append(
            f"nofile is {soft['nofile']}: reward workers, Ray and checkpoints open many files; "
            f"ulimit -n {_OPEN_FILES} or more"
        )
    if num_gpus and soft["memlock"] != resource.RLIM_INFINITY:
        notes.append(
            f"memlock is {soft['memlock']} bytes: NCCL over InfiniBand locks memory; ulimit -l unlimited, "
            "or docker run --ulimit memlock=-1"
        )
    return notes


def shm_notes(size: int, num_gpus: int) -> list[str]:
    """A note where shared memory is too small for several GPUs. size: bytes of /dev/shm, free or not."""
    if num_gpus < 2 or size >= _SHM_BYTES:
        return []
    return [
        f"/dev/shm has {size / 2**20:.0f} MiB: NCCL between the GPUs of one machine wants more; "
        "start the container with --ipc=host or --shm-size=16g"
    ]


def free_space(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no {folder}"
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free in {folder}"


def addresses(name: str) -> list[str]:
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None)})
    except OSError:
        return []


def addresses_in_words(name: str) -> str:
    return f"{name} is {', '.join(addresses(name)) or 'no known name'}"


def _driver_in_words() -> str:
    try:
        return _DRIVER.read_text().splitlines()[0].removeprefix("NVRM version: ")
    except (OSError, IndexError):
        return "no NVIDIA driver"
