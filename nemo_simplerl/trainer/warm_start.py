"""The supervised warm start: cross-entropy on response tokens, through the same models and schedules as PPO.

Legend: B samples of this data rank, S sequence length, T = S - 1 predicted tokens.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.algo.loss import Metrics
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import MicroBatch
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.data.sft import SftExample, collate_sft, load_sft
from nemo_simplerl.model.shards import export
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.vocab import vocab_parallel_logprob_entropy
from nemo_simplerl.trainer.actor import next_tokens
from nemo_simplerl.trainer.build import bad_updates, build_learner, hf_config_of_run, tokenizer_of
from nemo_simplerl.trainer.learner import Learner
from nemo_simplerl.trainer.minibatches import mini_batches
from nemo_simplerl.trainer.prepare import model_folder
from nemo_simplerl.trainer.warm_start_saves import WarmStartSaves


def warm_start(config: Config, mesh: Mesh, say: Callable[[str], None]) -> str:
    """Train model.path on data.sft_path and save the result at sft.output; returns that folder. Collective.

    A folder that is complete is used as it is; a warm start that was broken off goes on from its last checkpoint.
    Raises ValueError for rows that cannot be used.
    """
    output, sft = config.sft.output, config.sft
    assert output is not None, "config.check lets no warm start through without sft.output"
    if (Path(output) / "config.json").is_file():
        say(f"warm start: {output} is there already")
        return output
    tokenizer = tokenizer_of(config)
    examples, report = load_sft(
        config.data.sft_path,
        tokenizer,
        template=config.data.template,
        trailing_newline=config.data.prompt_trailing_newline,
        max_tokens=sft.max_tokens,
        overlong=sft.overlong,
    )
    say(
        f"warm start: {report.num_kept} examples, the longest of {report.longest} tokens (limit {sft.max_tokens}), "
        f"{report.num_dropped} dropped as too long"
    )
    updates_per_epoch = len(examples) // sft.global_batch_size
    if updates_per_epoch == 0:
        raise ValueError(
            f"{config.data.sft_path} leaves {len(examples)} examples, fewer than sft.global_batch_size="
            f"{sft.global_batch_size}; lower it or bring more examples."
        )
    total = sft.epochs * updates_per_epoch
    learner = build_learner(
        config,
        config.model.path,
        sft.optim,
        mesh,
        total_updates=total,
        bad_updates=bad_updates(config, "sft", 1, 1, say),
    )
    hf = hf_config_of_run(config)
    with closing(WarmStartSaves(config, learner, mesh, say)) as saves:
        done, started = saves.resume(), time.monotonic()
        for update in range(done, total):
            chosen = _examples_of(update, examples, updates_per_epoch, config, mesh)
            metrics = _update(learner, chosen, hf["vocab_size"], config, tokenizer.pad_token_id)
            saves.after(update + 1)
            if update % max(total // 10, 1) == 0 or update + 1 == total:
                say(
                    f"warm start: update {update + 1}/{total}  loss {metrics.get('loss', math.nan):.4f}  "
                    f"lr {metrics['lr']:.2e}  {time.monotonic() - started:.0f} s"
                )
        export(Path(output), learner.gpt, hf, model_folder(config), mesh)
        saves.forget()
    return output


def _examples_of(
    update: int, examples: list[SftExample], updates_per_epoch: int, config: Config, mesh: Mesh
) -> list[SftExample]:
    """This data rank's share of an update: every DP-th example of its part of the epoch's permutation."""
    epoch, position = divmod(update, updates_per_epoch)
    generator = torch.Generator().manual_seed(sample_seed(config.trainer.seed, epoch, 0, 0))
    size = config.sft.global_batch_size
    order = torch.randperm(len(examples), generator=generator)[position * size : (position + 1) * size].tolist()
    return [examples[i] for i in order[mesh.dp_rank :: mesh.dp_size]]


def _update(learner: Learner, examples: list[SftExample], vocab_size: int, config: Config, pad_id: int) -> dict:
    mesh = learner.mesh
    (mini,) = mini_batches(
        collate_sft(examples, pad_id, mesh.device),
        config.sft,
        aggregation="token_mean",
        epochs=1,
        mesh=mesh,
    )
    return learner.update(mini, lambda *args: sft_loss(*args, vocab_size, mesh))


def sft_loss(output_SBV: Tensor, micro: MicroBatch, vocab_size: int, mesh: Mesh) -> tuple[Tensor, Metrics]:
    """Mean negative log-probability of the response tokens of the whole update."""
    logprobs_SB, _ = vocab_parallel_logprob_entropy(
        output_SBV,
        next_tokens(micro.tokens_BS, output_SBV.shape[0]),
        group=mesh.tensor,
        vocab_size=vocab_size,
    )
    logprobs_BT = logprobs_SB[: micro.tokens_BS.shape[1] - 1].T
    loss = -(micro.columns["weights_BT"] * logprobs_BT).sum()
    return loss, {"loss": loss.detach()}
