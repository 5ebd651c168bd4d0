"""Where a PPO step's time goes, against what this machine's matrix products could do. Prints one JSON line.

usage: python scripts/bench/step.py [OVERRIDE...]     (on one rank; the quickstart's model and batch, not warm-started)

`products_share` is the time the passes' matrix products would take at the speed of large products, measured in the same
run, divided by the time the passes took: 1 is the limit; padding, attention, small shapes and overhead are missing.
"""

import json
import sys
import tempfile
import time

import torch

from nemo_simplerl.config.load import load
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.start import join_world, open_run

STEPS = 3
# Forward passes a token: old log-probabilities, reference, values; an update is one forward and two backward.
PASSES = {"old_logprobs": 1, "reference_logprobs": 1, "values": 1, "actor_update": 3, "critic_update": 3}


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"trainer.run_dir={folder}/run", "sft.output=null", "trainer.tensorboard=false", *overrides]
        config = load(["experiment=quickstart", *settings], world_size=1)
        with join_world(config) as mesh, open_run(config, mesh, time.monotonic()) as run:
            run.roles.refit(version=0)
            ppo_step(1, run.prompts_of(1), run.roles)
            run.roles.timer.drain()
            metrics = [ppo_step(step, run.prompts_of(step), run.roles)[0] for step in range(2, 2 + STEPS)]
            seconds = {name: total / STEPS for name, total in run.roles.timer.drain().items()}
            response_tokens = sum(line["rollout/tokens"] for line in metrics) / STEPS
            prompt_tokens = (
                config.rollout.n_samples_per_prompt
                * sum(len(prompt.token_ids) for step in range(2, 2 + STEPS) for prompt in run.prompts_of(step))
                / STEPS
            )
            gpt = run.roles.actor.learner.gpt
            flops_per_token = 2 * sum(param.numel() for param in gpt.parameters() if param.ndim == 2)
            peak = product_flops_per_second(mesh)
    in_passes = sum(seconds[f"time/{phase}"] for phase in PASSES)
    flops = flops_per_token * sum(PASSES.values()) * (prompt_tokens + response_tokens)
    print(
        json.dumps(
            {
                "bench": "step",
                "device": str(mesh.device),
                "threads": torch.get_num_threads(),
                "samples": config.data.rollout_batch_size * config.rollout.n_samples_per_prompt,
                "tokens": round(prompt_tokens + response_tokens),
                "rollout_tokens_per_second": round(response_tokens / seconds["time/rollout"]),
                "products_share": round(flops / peak / in_passes, 3),
                "seconds": {name.removeprefix("time/"): round(value, 3) for name, value in seconds.items()},
            }
        )
    )


def product_flops_per_second(mesh: Mesh, size: int = 1024, repeats: int = 10) -> float:
    """Floating-point operations a second of float32 products of this size."""
    left, right = torch.randn(2, size, size, device=mesh.device)
    left @ right
    started = time.perf_counter()
    for _ in range(repeats):
        product = left @ right
    float(product[0, 0])  # waits for the device
    return 2 * size**3 * repeats / (time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1:])
