"""`simplerl convert`: turns one form of model files into another."""

import argparse
import math
import os
import sys
import time

from nemo_simplerl.cli.start.guard import path

_KINDS = ("hf", "nemo", "checkpoint", "nemo2", "bridge", "megatron", "gguf")  # the keys of model.source.READERS
_WRITTEN = tuple(kind for kind in _KINDS if kind != "gguf")
_LONGEST = 2000  # characters of an error, which may quote a damaged file
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def run(argv: list[str]) -> int:
    """Exit status: 0; 1 where `--verify` found a difference; 2 where nothing could be converted."""
    args = _parser().parse_args(argv)
    # Every tensor is read into fresh memory: huge pages halve what that costs. torch reads this when it is imported,
    # which happens here and not at the top, so that `--help` and a wrong flag answer at once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from nemo_simplerl.model.conversion.convert import convert
    from nemo_simplerl.model.source import open_source

    try:
        target = _target(args)
        source = open_source(args.source, args.from_, critic=args.critic, tokenizer=args.tokenizer)
        if source.is_critic and not args.critic:
            raise ValueError(f"{source.path} is a critic: it holds a value head; add --critic to convert it as one.")
        started = time.monotonic()
        with _Progress(source.num_bytes) as progress:
            convert(source, target, progress.update)
        print(
            f"{target.path}: {len(source.specs)} parameters, {source.num_bytes / 1e9:.2f} GB, "
            f"{time.monotonic() - started:.1f} s"
        )
        _tell_about_tokenizer(source, target)
        _tell_about_padding(source, target)
        return _verify(source, target) if args.verify else 0
    except ValueError as error:
        print(f"simplerl convert: {' '.join(str(error).split())[:_LONGEST]}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl convert",
        description="Turn a model on disk into another form of it. Weights are streamed: memory holds a few tensors.",
    )
    parser.add_argument("--from", dest="from_", required=True, choices=_KINDS, help="what SRC is")
    parser.add_argument("--to", required=True, choices=_WRITTEN, help="what DST becomes")
    parser.add_argument("source", metavar="SRC", type=path, help="folder, file, checkpoints/step_N or iter_N")
    parser.add_argument("target", metavar="DST", type=path, help="must not exist")
    parser.add_argument("--critic", action="store_true", help="the critic of a checkpoint; SRC must hold a value head")
    parser.add_argument("--dtype", choices=_DTYPES, help="of every tensor (default: as it is)")
    parser.add_argument("--shard-gb", type=float, default=4.0, help="size of a *.safetensors file (default: 4)")
    parser.add_argument("--tokenizer", type=path, metavar="DIR", help="tokenizer files to take in place of SRC's")
    parser.add_argument("--verify", action="store_true", help="compare every tensor, then the outputs on a fixed batch")
    return parser


def _target(args: argparse.Namespace):
    import torch

    from nemo_simplerl.model.conversion.convert import Target

    if not 0 < args.shard_gb < math.inf:
        raise ValueError(f"--shard-gb must be positive, got {args.shard_gb}.")
    dtype = getattr(torch, _DTYPES[args.dtype]) if args.dtype else None
    return Target(args.to, args.target, dtype, int(args.shard_gb * 1e9), args.tokenizer)


def _tell_about_tokenizer(source, target) -> None:
    if not target.tokenizer and not any("token" in name for name in source.small_files):
        named = f" It names {source.tokenizer!r}." if source.tokenizer else ""
        print(f"no tokenizer: {source.path} holds no tokenizer files.{named} Give one with --tokenizer DIR.")


def _tell_about_padding(source, target) -> None:
    if source.kind == "megatron" and "config.json" not in source.small_files and not target.tokenizer:
        print(
            f"vocabulary: {source.path} does not say how many of its {source.hf['vocab_size']} rows are tokens; if "
            "some only pad it, give the model's Hugging Face folder with --tokenizer DIR."
        )


def _verify(source, target) -> int:
    from nemo_simplerl.model.conversion.verify import verify

    problems = verify(source, target, report=print)
    for problem in problems:
        print(f"DIFFERENT: {problem}", file=sys.stderr)
    return 1 if problems else 0


class _Progress:
    """Progress of a conversion: a bar on a terminal, else a line for every tenth on stderr."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("convert", total=total) if self._bar else None
        self._tenths = 0

    def __enter__(self) -> "_Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif total > 1e9 and done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB", file=sys.stderr)
