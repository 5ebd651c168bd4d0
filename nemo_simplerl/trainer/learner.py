"""A model that learns: Megatron's data-parallel wrapper, optimizer and learning-rate schedule around a GPTModel.

Actor, critic and the warm start each hold one.
"""

from collections.abc import Sequence

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch import Tensor

from nemo_simplerl.algo.schedule import learning_rate
from nemo_simplerl.config.schema import OptimConfig
from nemo_simplerl.model import schedule
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import all_reduce_metrics


class Learner:
    """Forward passes and updates of one model.

    `total_updates` is the length of the learning-rate schedule; `updates` counts the updates made.
    """

    def __init__(
        self,
        gpt: GPTModel,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        total_updates: int,
        use_distributed_optimizer: bool,
    ):
        self.gpt, self.optim, self.mesh, self.total_updates = gpt, optim, mesh, total_updates
        self.updates = 0
        config = gpt.config
        self.model = DistributedDataParallel(
            config=config,
            ddp_config=DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=use_distributed_optimizer
            ),
            module=gpt,
            pg_collection=mesh.collection,
        )
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
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
            ),
            [self.model],
            use_gloo_process_groups=False,
            pg_collection=mesh.collection,
        )

    def forward_only(self, micro_batches: Sequence[schedule.MicroBatch], head: schedule.Head) -> list[Tensor]:
        """`head` of each micro-batch, on every rank of the replica. Collective."""
        return schedule.forward_only(self.model, micro_batches, head, self.mesh)

    def update(self, micro_batches: Sequence[schedule.MicroBatch], loss: schedule.Loss) -> dict[str, float]:
        """One optimizer step on the summed loss of the micro-batches of all data ranks. Collective.

        Returns the loss's metrics over all of them, `grad_norm` (before clipping) and `lr`.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        metrics = schedule.forward_backward(self.model, micro_batches, loss, self.mesh)
        finalize_model_grads([self.model], pg_collection=self.mesh.collection)
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        _, grad_norm, _ = self.optimizer.step()
        self.updates += 1
        return self._global_metrics(metrics) | {"grad_norm": float(grad_norm), "lr": lr}

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
