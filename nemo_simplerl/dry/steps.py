"""The real step of a run, rank after rank, on pretended GPUs. For the child process alone: it changes torch."""

import gc
import json
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # noqa: F401  registers the backend "fake"

from nemo_simplerl.dry.te.install import install

install()  # before anything imports Megatron

from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding  # noqa: E402

from nemo_simplerl.config.load import compose  # noqa: E402
from nemo_simplerl.config.shape import ModelShape  # noqa: E402
from nemo_simplerl.dry.collectives import traffic  # noqa: E402
from nemo_simplerl.dry.execute import EXECUTED  # noqa: E402
from nemo_simplerl.dry.materials import GivenStep, materials, prompts_of  # noqa: E402
from nemo_simplerl.dry.recorder import FakeCuda, Recorder  # noqa: E402
from nemo_simplerl.dry.sample import Sample  # noqa: E402
from nemo_simplerl.dry.world import Peers, pretend_fused_kernels, pretend_gpu, pretend_neighbours  # noqa: E402
from nemo_simplerl.parallel.mesh import destroy_mesh  # noqa: E402
from nemo_simplerl.parallel.waits import waiting  # noqa: E402
from nemo_simplerl.trainer.build import build_roles  # noqa: E402
from nemo_simplerl.trainer.loop import ppo_step  # noqa: E402
from nemo_simplerl.trainer.setup import determinism  # noqa: E402
from nemo_simplerl.trainer.setup.world import world_of  # noqa: E402

START = "start"
_PHASES = {
    START,
    "rollout",
    "reward",
    "old_logprobs",
    "reference_logprobs",
    "values",
    "critic_update",
    "actor_update",
    "refit",
}
_BETWEEN = "between phases"  # KL, rewards, advantages


def current_phase() -> str:
    """The outermost phase that the program is in."""
    return waiting.open[0].name if waiting.open and waiting.open[0].name in _PHASES else _BETWEEN


def run_cases(cases: Sequence[Mapping[str, Any]], result: Path) -> None:
    """Execute the cases in their order; writes after each what all of them have given, and a line to stdout."""
    session = Session()
    found = []
    for count, case in enumerate(cases, 1):
        found.append(done := session.run(case))
        result.write_text(json.dumps(found))
        what = f"rank {done['rank']} of models of {done['num_layers']} layers"
        print(f"{EXECUTED}{count} of {len(cases)}: {what}, {done['seconds']:.0f} s", flush=True)


class Session:
    """One pretended machine. Only one may be made in a process."""

    def __init__(self) -> None:
        self.recorder = Recorder(current_phase)
        self.peers = Peers(self.recorder)
        self._fake = FakeCuda(allow_non_fake_inputs=True)  # one for all cases: its tensors may live on in caches
        self._layout: Any = None
        pretend_gpu(self.recorder)
        pretend_fused_kernels(self.recorder)
        pretend_neighbours()
        self.peers.install()

    def run(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Execute one step of one rank. Returns what was counted, by phase, or the error that ended it."""
        if case["layout"] != self._layout:
            self._layout = case["layout"]
            self.peers.begin_layout()
        self.peers.begin_rank()
        RotaryEmbedding.forward.cache_clear()  # else angles of earlier cases are given back in the middle of this one
        gc.collect()
        before, started = self.recorder.begin(), time.monotonic()
        error: str | None = None
        try:
            with self._fake, self.recorder, tempfile.TemporaryDirectory() as folder:
                self._step(case, Path(folder))
        except Exception as caught:
            error = _in_words(caught)
        finally:
            destroy_mesh()
        recorder = self.recorder
        return {
            "rank": case["rank"],
            "layout": case["layout"],
            "num_layers": case["shape"]["num_layers"],
            "error": error,
            "seconds": time.monotonic() - started,
            "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peaks": {phase: peak - before for phase, peak in recorder.memory.peaks.items()},
            "counts": {phase: asdict(counts) for phase, counts in recorder.counts.items()},
            "traffic": [asdict(one) for one in traffic(recorder.collectives)],
            "collectives": recorder.collectives,
        }

    def _step(self, case: Mapping[str, Any], folder: Path) -> None:
        rank, world_size = case["rank"], case["world_size"]
        os.environ.update(WORLD_SIZE=str(world_size), RANK=str(rank), LOCAL_RANK="0")
        dist.init_process_group("fake", rank=rank, world_size=world_size, store=dist.HashStore())
        config = compose([*case["overrides"], f"trainer.run_dir={folder}"])
        determinism.pin(config.trainer.deterministic)
        shape, critic = (one and ModelShape(**one) for one in (case["shape"], case["critic_shape"]))
        sample = Sample(case["sample"]["prompt_tokens"], tuple(case["sample"]["response_tokens"]))
        world = world_of(config)
        first_step = config.algo.critic_warmup_steps + 1  # that trains the actor too
        with waiting(START):
            roles = build_roles(
                config,
                materials(config, shape, critic, folder),
                world,
                None,
                total_steps=first_step + 1,
                step_state=GivenStep(sample),
                on_phase=lambda phase, group=None: None,
            )
            roles.refit(version=0)
        prompts = prompts_of(sample)
        if not config.actor.offload_adam_states:
            # Adam's moments, which stay on the GPU, are there from the second step on.
            ppo_step(first_step, prompts, roles)
            self.recorder.forget_all_but(START)
        ppo_step(first_step + 1, prompts, roles)


def _in_words(error: BaseException) -> str:
    """The error and the innermost line of this project, or of Megatron, that it passed through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "nemo_simplerl/dry/" not in frame.filename and "/torch/" not in frame.filename
    ]
    ours = [frame for frame in frames if "/nemo_simplerl/" in frame.filename] or frames
    where = f", at {'/'.join(ours[-1].filename.split('/')[-3:])}:{ours[-1].lineno}" if ours else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}{where}"
