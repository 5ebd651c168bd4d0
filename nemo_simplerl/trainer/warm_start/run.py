"""The supervised warm start: cross-entropy on response tokens, through the same models and schedules as PPO.

Legend: B samples of this data rank, S sequence length, T = S - 1 predicted tokens, H hidden size.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_simplerl.algo.loss import Metrics
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import MicroBatch
from nemo_simplerl.data.examples import examples_of
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.data.sft import SftExample, collate_sft, load_sft
from nemo_simplerl.files import NotSaved, room_in
from nemo_simplerl.model.conversion.shards import export_to_hf
from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.word import leave_word, wait_for_word
from nemo_simplerl.trainer.guard.finite import delete_bad_updates
from nemo_simplerl.trainer.guard.stop import Stop, Stopping, write_stopped
from nemo_simplerl.trainer.learners.build import bad_updates_of, build_learner
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.minibatches import mini_batches
from nemo_simplerl.trainer.logging.wandb_log import WandbLog
from nemo_simplerl.trainer.setup.inputs import check_inputs, tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.warm_start.evaluation import WarmStartEval, make_groups_of_engine
from nemo_simplerl.trainer.warm_start.folder import checkpoints_of
from nemo_simplerl.trainer.warm_start.log import WarmStartLog
from nemo_simplerl.trainer.warm_start.saves import WarmStartSaves

log = logging.getLogger(__name__)


class StoppedEarly(Stopping):
    """Raised on every rank where those that train have agreed to stop after `update` updates, which are saved."""

    def __init__(self, update: int, reason: str):
        super().__init__(reason)
        self.update = update


def stoppable_warm_start(config: Config, mesh: Mesh, wandb: WandbLog | None, stop: Stop) -> str:
    """Run the warm start, which `stop` may end; returns the folder of its model. Collective over the world.

    mesh: the actor's. Raises StoppedEarly where it was asked to stop, after writing down how far it came.
    """
    try:
        with stop:
            return warm_start(config, mesh, wandb, partial(stop.safe_point, mesh.role))
    except StoppedEarly as asked:
        if mesh.rank == 0:
            stop.delete_files()
            write_stopped(Path(config.trainer.run_dir), step=0, updates_in_step=asked.update, reason=str(asked))
        log.info(
            f"stopped after update {asked.update} of the warm start: {asked}. Start the same command again to go on."
        )
        raise


def warm_start(
    config: Config,
    mesh: Mesh,
    wandb: WandbLog | None = None,
    safe_point: Callable[[], None] = lambda: None,
) -> str:
    """Train model.path on data.sft_path and save the result at sft.output; returns that folder. Collective over the
    world: the ranks of `mesh` train, and others wait until they have.

    A complete folder is used as it is; a warm start that was interrupted continues from its last checkpoint.
    wandb: on rank 0, where trainer.wandb is enabled. safe_point: called after every update; where it raises Stopping,
    the updates made are saved and StoppedEarly is raised. Raises ValueError for rows that cannot be used, and NotSaved
    where the model cannot be written.
    """
    output = config.sft.output
    assert output is not None, "config.rules lets no warm start through without sft.output"
    if (Path(output) / "config.json").is_file():
        log.info(f"warm start: {output} is there already")
        return output
    if os.path.lexists(output):
        raise ValueError(f"sft.output={output} exists and holds no model. Remove it, or choose another name.")
    for note in check_inputs(config, checkpoints_of(output)):
        log.info(f"warm start: {note}")
    tokenizer = tokenizer_of(model_folder(config))
    if mesh.is_member:
        with _told_elsewhere(mesh):
            _train(config, output, tokenizer, mesh, wandb, safe_point)
    else:
        _wait_for_actor(config, tokenizer, mesh)
    return output


@contextmanager
def _told_elsewhere(mesh: Mesh) -> Iterator[None]:
    """Tell the ranks without the actor how the work in this context has ended: done, stopped, refused or not written.
    Another error ends them through the watchdog."""
    word: dict[str, object] | None = None
    try:
        yield
        word = {}
    except StoppedEarly as asked:
        word = {"update": asked.update, "reason": str(asked)}
        raise
    except ValueError as error:
        word = {"problem": str(error)}
        raise
    except NotSaved as error:
        word = {"not_saved": str(error)}
        raise
    finally:
        if word is not None and mesh.rank == 0 and mesh.role.size() < mesh.world_size:
            leave_word("warm_start", word)


def _wait_for_actor(config: Config, tokenizer, mesh: Mesh) -> None:
    """Wait until the ranks of the actor are done, and raise what they do."""
    make_groups_of_engine(config, tokenizer, mesh)
    word = wait_for_word("warm_start")
    if "update" in word:
        raise StoppedEarly(word["update"], word["reason"])
    if "problem" in word:
        raise ValueError(word["problem"])
    if "not_saved" in word:
        raise NotSaved(word["not_saved"])


def _train(
    config: Config,
    output: str,
    tokenizer,
    mesh: Mesh,
    wandb: WandbLog | None,
    safe_point: Callable[[], None],
) -> None:
    """The warm start on the ranks of the actor; see `warm_start`. Collective over the mesh."""
    sft = config.sft
    examples = _examples(config, tokenizer)
    updates_per_epoch = len(examples) // sft.global_batch_size
    total = sft.epochs * updates_per_epoch
    learner = build_learner(
        open_source(config.model.path),
        config.model,
        replace(config.actor, offload_adam_states=False),  # this learner has the device to itself
        sft.optim,
        mesh,
        total_updates=total,
        deterministic=config.trainer.deterministic,
        bad_updates=bad_updates_of(config.trainer, "sft", first_step=1, updates_per_step=1),
    )
    hf = read_hf_config(model_folder(config))
    with (
        closing(WarmStartSaves(config, learner, examples, mesh)) as saves,
        closing(WarmStartEval(config, learner, tokenizer)) as held_out,
    ):
        done = saves.resume()
        if mesh.rank == 0:
            delete_bad_updates(config.trainer.run_dir, ("sft",), done)
        with closing(WarmStartLog(config.trainer, done, total, mesh.rank == 0, wandb)) as update_log:
            if done == 0 and held_out.is_due(0, total):
                update_log.update(0, held_out.measure(0))
            for update in range(done + 1, total + 1):
                chosen = _examples_of(update - 1, examples, updates_per_epoch, config, mesh)
                metrics = _update(learner, chosen, hf["vocab_size"], config, tokenizer.pad_token_id)
                if held_out.is_due(update, total):
                    metrics |= held_out.measure(update)
                update_log.update(update, metrics)
                saves.save_if_due(update)
                if update < total:
                    try:
                        safe_point()
                    except Stopping as asked:
                        saves.save_now(update)
                        raise StoppedEarly(update, str(asked)) from asked
        try:
            export_to_hf(Path(output), learner.gpt, hf, model_folder(config), mesh)
        except NotSaved as error:
            raise NotSaved(
                f"sft.output={output} was NOT written: {error}. {room_in(Path(output).parent)}; make room there, and "
                f"start the same command again: {saves.way_on()}."
            ) from error
        saves.delete()


def _examples(config: Config, tokenizer) -> list[SftExample]:
    """The examples of data.sft_path. Raises ValueError where they are too few for an update."""
    sft = config.sft
    examples, report = load_sft(
        config.data.sft_path,
        tokenizer,
        template=config.data.template,
        trailing_newline=config.data.prompt_trailing_newline,
        max_tokens=sft.max_tokens,
        overlong=sft.overlong,
        worked=examples_of(config.data),
    )
    log.info(
        f"warm start: {report.num_kept} examples, the longest of {report.longest} tokens (limit {sft.max_tokens}), "
        f"{report.num_dropped} dropped as too long"
    )
    if (leftover := len(examples) % sft.global_batch_size) and len(examples) > leftover:
        log.info(
            f"warm start: {leftover} of {len(examples)} examples are left over in every epoch, too few for an update: "
            f"other ones each time; an sft.global_batch_size that divides {len(examples)} leaves none"
        )
    if len(examples) < sft.global_batch_size:
        raise ValueError(
            f"{config.data.sft_path} leaves {len(examples)} examples, fewer than sft.global_batch_size="
            f"{sft.global_batch_size}; lower it or bring more examples."
        )
    return examples


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
    """Train on the examples, this data rank's share of an update; returns its metrics. Collective."""
    mesh = learner.mesh
    (mini,) = mini_batches(
        collate_sft(examples, pad_id, mesh.device),
        config.sft,
        aggregation="token_mean",
        epochs=1,
        mesh=mesh,
    )
    metrics = learner.update(mini, lambda *args: sft_loss(learner.gpt, *args, vocab_size, mesh))
    return {f"sft/{name}": value for name, value in metrics.items()}


def sft_loss(
    gpt: GPTModel, hidden_SBH: Tensor, micro: MicroBatch, vocab_size: int, mesh: Mesh
) -> tuple[Tensor, Metrics]:
    """Mean negative log-probability of the response tokens of the whole update."""
    logprobs_BT = head.logprobs(gpt, hidden_SBH, micro, mesh, vocab_size=vocab_size)
    loss = -(micro.columns["weights_BT"] * logprobs_BT).sum()
    return loss, {"loss": loss.detach()}
