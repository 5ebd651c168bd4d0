"""Seconds, peak memory and bytes moved of HF -> .nemo -> HF, beside `cp` of the same bytes in the same run. Prints one
JSON line.

usage: python scripts/bench/convert.py [--layers N] [--repeats N] [--folder DIR]

The model has the shape of Qwen2.5-1.5B (28 layers, 3.1 GB) with random bfloat16 weights. Each conversion is a process
of its own, so its peak memory is what a user would see; `cp` is followed by `sync` of the file, as a conversion is.
`read` and `written` are bytes that passed through system calls, as a multiple of the model's: `cp` may pass none (the
kernel copies), a conversion each byte once in each direction. Between them a byte is copied once more where query, key
and value, or gate and up, are joined or cut apart (`regrouped`, the share of the model's bytes).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import safetensors_io
from nemo_simplerl.model.readers.huggingface import hf_specs

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        num_bytes = write_model(folder / "hf", SHAPE | {"num_hidden_layers": args.layers})
        weights = folder / "hf" / "model.safetensors"
        runs = [measure(folder, weights) for _ in range(args.repeats)]
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        assert same_bytes(weights, folder / "back" / "model.safetensors"), "the round trip changed the weights"
    finally:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {"bench": "convert", "gigabytes": round(num_bytes / 1e9, 2), "repeats": args.repeats}
            | {key: round(value, 3) for key, value in best.items()}
            | {
                "regrouped": round(regrouped(SHAPE | {"num_hidden_layers": args.layers}) / num_bytes, 2),
                "to_nemo_over_cp": round(best["to_nemo_s"] / best["cp_s"], 2),
                "to_hf_over_cp": round(best["to_hf_s"] / best["cp_s"], 2),
            }
        )
    )


def write_model(folder: Path, hf: dict) -> int:
    """Write a Hugging Face folder of random weights. Returns their bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf))
    specs = [spec for name in hf_map.model_params(hf) for spec in hf_specs(name, hf, torch.bfloat16)]
    generator = torch.Generator().manual_seed(0)
    tensors = ((spec.name, torch.empty(spec.shape, dtype=spec.dtype).normal_(generator=generator)) for spec in specs)
    safetensors_io.write_folder(folder, specs, tensors, shard_bytes=10**12)
    return sum(spec.num_bytes for spec in specs)


def measure(folder: Path, weights: Path) -> dict[str, float]:
    """Seconds and peak memory of one round trip, with a `cp` before each conversion."""
    (folder / "model.nemo").unlink(missing_ok=True)
    shutil.rmtree(folder / "back", ignore_errors=True)
    copies = [copy(folder, weights)]
    there = convert("hf", "nemo", folder / "hf", folder / "model.nemo")
    copies.append(copy(folder, weights))
    back = convert("nemo", "hf", folder / "model.nemo", folder / "back")
    size = weights.stat().st_size
    return {
        "cp_s": min(synced for synced, _ in copies),
        "cp_without_sync_s": min(unsynced for _, unsynced in copies),
        "to_nemo_s": there.seconds,
        "to_hf_s": back.seconds,
        "peak_gb": max(there.peak_gb, back.peak_gb),
        "to_nemo_read": there.read / size,
        "to_nemo_written": there.written / size,
        "to_hf_read": back.read / size,
        "to_hf_written": back.written / size,
    }


def regrouped(hf: dict) -> int:
    """Bytes of the parameters that are made of several tensors, which are joined or split in memory."""
    entries = ((name, hf_map.mapping(name)) for name in hf_map.model_params(hf))
    specs = [spec for name, entry in entries if len(entry.hf_names) > 1 for spec in hf_specs(name, hf, torch.bfloat16)]
    return sum(spec.num_bytes for spec in specs)


def copy(folder: Path, weights: Path) -> tuple[float, float]:
    """Seconds of `cp` with `sync` and without."""
    target = folder / "copy"
    rest()
    started = time.perf_counter()
    subprocess.run(["cp", str(weights), str(target)], check=True)
    unsynced = time.perf_counter() - started
    subprocess.run(["sync", str(target)], check=True)
    synced = time.perf_counter() - started
    target.unlink()
    return synced, unsynced


class Conversion(NamedTuple):
    """What a whole command took: its peak is of resident memory, its bytes went through system calls."""

    seconds: float
    peak_gb: float
    read: int
    written: int


def convert(source_kind: str, target_kind: str, source: Path, target: Path) -> Conversion:
    """Run `simplerl convert`."""
    rest()
    before = time.perf_counter()
    command = ["-W", "ignore", "-m", "nemo_simplerl", "convert", "--from", source_kind, "--to", target_kind]
    process = subprocess.Popen([sys.executable, *command, "--shard-gb", "1000", str(source), str(target)], stdout=2)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its counts can be read until it is waited for
    seconds = time.perf_counter() - before
    counts = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"convert failed with status {status}")
    return Conversion(seconds, usage.ru_maxrss * 1024 / 1e9, int(counts["rchar"]), int(counts["wchar"]))


def rest() -> None:
    """Wait until memory that was just freed is as cold as any other: a virtual machine returns it to its host after
    some two seconds, and a file that is written into it before then takes a third of the time.
    """
    time.sleep(5)


def same_bytes(first: Path, second: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(first), str(second)], check=False).returncode == 0


if __name__ == "__main__":
    main()
