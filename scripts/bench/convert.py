"""Seconds and peak memory of HF -> .nemo -> HF, beside `cp` of the same bytes in the same run. Prints one JSON line.

usage: python scripts/bench/convert.py [--layers N] [--repeats N] [--folder DIR]

The model has the shape of Qwen2.5-1.5B (28 layers, 3.1 GB) with random bfloat16 weights. Each conversion is a process
of its own, so its peak memory is what a user would see; `cp` is followed by `sync` of the file, as a conversion is.
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
    return {
        "cp_s": min(synced for synced, _ in copies),
        "cp_without_sync_s": min(unsynced for _, unsynced in copies),
        "to_nemo_s": there[0],
        "to_hf_s": back[0],
        "peak_gb": max(there[1], back[1]),
    }


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


def convert(source_kind: str, target_kind: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds of the whole command, and its peak resident memory in GB."""
    rest()
    before = time.perf_counter()
    command = ["-W", "ignore", "-m", "nemo_simplerl", "convert", "--from", source_kind, "--to", target_kind]
    process = subprocess.Popen([sys.executable, *command, "--shard-gb", "1000", str(source), str(target)], stdout=2)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"convert failed with status {status}")
    return time.perf_counter() - before, usage.ru_maxrss * 1024 / 1e9


def rest() -> None:
    """Wait until memory that was just freed is as cold as any other: a virtual machine returns it to its host after
    some two seconds, and a file that is written into it before then takes a third of the time.
    """
    time.sleep(5)


def same_bytes(first: Path, second: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(first), str(second)], check=False).returncode == 0


if __name__ == "__main__":
    main()
