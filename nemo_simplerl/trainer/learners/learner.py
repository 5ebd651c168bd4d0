"""A model that learns: Megatron's data-parallel wrapper, optimizer and learning-rate schedule around a GPTModel.

Actor, critic and the warm start each hold one.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor

from nemo_simplerl.algo.learning_rate import learning_rate
from nemo_simplerl.config.schema import OptimConfig
from nemo_simplerl.model.network import pipeline
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.optimizer import optimizer_of_ranks
from nemo_simplerl.parallel.reductions import all_reduce_metrics, any_rank
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.guard.finite import BadUpdates, not_finite
from nemo_simplerl.trainer.learners.offload import Offload
from nemo_simplerl.trainer.learners.optimizer_parts import fuse_torch_adam, inner_optimizers


class Learner:
    """Forward passes and updates of one model.

    `total_updates` is the length of the learning-rate schedule; `updates` counts the updates, made or left out, and
    `skipped` those left out, which Adam's moments and step count do not see. Without `bad_updates`, updates that are
    left out are not written down, and any number of them is accepted. With `offload_adam_states` (see
    learners.offload) updates must be made within `optimizer_on_device`.
    """

    def __init__(
        self,
        gpt: GPTModel,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        total_updates: int,
        use_distributed_optimizer: bool,
        overlap_grad_reduce: bool = False,
        offload_adam_states: bool = False,
        bad_updates: BadUpdates | None = None,
    ):
        self.gpt, self.optim, self.mesh, self.total_updates = gpt, optim, mesh, total_updates
        self.updates, self.skipped, self.bad_updates = 0, 0, bad_updates
        config = gpt.config
        self.model = DistributedDataParallel(
            config=config,
            ddp_config=DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=use_distributed_optimizer,
                overlap_grad_reduce=overlap_grad_reduce,
            ),
            module=gpt,
            pg_collection=mesh.collection,
        )
        if overlap_grad_reduce:
            config.no_sync_func = self.model.no_sync  # the schedules reduce after the last micro-batch alone
        settings = OptimizerConfig(
            lr=optim.lr,
            min_lr=optim.min_lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.adam_beta1,
            adam_beta2=optim.adam_beta2,
            adam_eps=optim.adam_eps,
            clip_grad=optim.clip_grad,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=use_distributed_optimizer,
        )
        with optimizer_of_ranks(mesh.role):
            self.optimizer = get_megatron_optimizer(
                settings, [self.model], use_gloo_process_groups=False, pg_collection=mesh.collection
            )
        fuse_torch_adam(self.optimizer)
        self.offload = Offload(self.model, self.optimizer, mesh.device) if offload_adam_states else None

    @property
    def steps(self) -> int:
        """Optimizer steps: the updates made, without those left out."""
        return self.updates - self.skipped

    def optimizer_on_device(self) -> AbstractContextManager[None]:
        """Use as a context around updates: optimizer state is moved to the device on entry and back on exit."""
        return nullcontext() if self.offload is None else self.offload.while_updating()

    def forward_only(self, micro_batches: Sequence[pipeline.PipelineBatch], head: pipeline.Head) -> list[Tensor]:
        """`head` of each micro-batch, on every rank of the replica. Collective."""
        return pipeline.forward_only(self.model, micro_batches, head, self.mesh)

    def update(self, micro_batches: Sequence[pipeline.PipelineBatch], loss: pipeline.Loss) -> dict[str, float]:
        """One optimizer step on the summed loss of the micro-batches of all data ranks. Collective.

        Returns the loss's metrics over all of them, `grad_norm` (before clipping), `lr` and `skipped`, 0. Where a
        metric or the norm is not finite on any rank, all ranks leave the update out: weights and optimizer stay as they
        are to the bit, the schedule goes on, so that every later update has the rate it would have had, and only `lr`
        and `skipped`, 1, are returned. Raises RuntimeError where `bad_updates` has seen enough.
        """
        with waiting("update"):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            metrics = pipeline.forward_backward(self.model, micro_batches, loss, self.mesh)
            finalize_model_grads([self.model], pg_collection=self.mesh.collection)
            lr = self.learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            combined = self._global_metrics(metrics)
            self.optimizer.prepare_grads()
            grad_norm = float(self.optimizer.get_grad_norm())
            wrong = not_finite(combined, grad_norm)
            # Replicas see the same sums. Ranks of one compute the same metrics each for itself.
            is_skipped = any_rank(bool(wrong), self.mesh.device, self.mesh.role)
            self.updates += 1
            if is_skipped:
                self.skipped += 1
                if self.bad_updates is not None:
                    self.bad_updates.record(self.updates - 1, micro_batches, wrong, self.mesh)
                return {"lr": lr, "skipped": 1.0}
            self._step(grad_norm)
            return combined | {"grad_norm": grad_norm, "lr": lr, "skipped": 0.0}

    def _step(self, grad_norm: float) -> None:
        """What Megatron's optimizer.step does once it knows the norm."""
        for optimizer in inner_optimizers(self.optimizer):
            params = optimizer.get_parameters()
            if params and optimizer.config.clip_grad > 0.0:
                clip_grad_by_total_norm_fp32(params, max_norm=optimizer.config.clip_grad, total_norm=grad_norm)
        self.optimizer.step_with_ready_grads()

    def learning_rate(self) -> float:
        """The rate of the next update."""
        optim = self.optim
        return learning_rate(
            self.updates,
            self.total_updates,
            lr=optim.lr,
            min_lr=optim.min_lr,
            style=optim.lr_decay_style,
            warmup_fraction=optim.lr_warmup_fraction,
        )

    def _global_metrics(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Combine over data ranks on the last stage, then hand the result up the pipeline."""
        mesh = self.mesh
        combined = all_reduce_metrics(metrics, mesh.data) if mesh.is_last_stage else {}
        if mesh.pp_size > 1:
            carrier = [combined]
            source = mesh.stage_rank(mesh.pp_size - 1)
            torch.distributed.broadcast_object_list(carrier, src=source, group=mesh.pipeline)
            combined = carrier[0]
        return combined
