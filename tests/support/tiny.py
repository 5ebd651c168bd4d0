"""Small models and layouts that many tests share."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.schema import ActorConfig, Config, OptimConfig
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.trainer.build import build_gate
from nemo_simplerl.trainer.estimators import GaeWithCritic
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.build import build_learner
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.elsewhere import ModelElsewhere
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.setup.world import world_of

OPTIM = OptimConfig(
    lr=1e-3,
    min_lr=1e-4,
    lr_decay_style="constant",
    lr_warmup_fraction=0.0,
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_eps=1e-8,
    clip_grad=1.0,
)


def layout(tp: int = 1, pp: int = 1, **changes) -> ActorConfig:
    """The actor section of a configuration for this parallel layout."""
    values = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "use_distributed_optimizer": False,
        "overlap_grad_reduce": False,
        "offload_adam_states": False,
        "recompute_granularity": None,
        "micro_batch_size": 4,
        "forward_micro_batch_size": 4,
        "micro_batch_tokens": None,
        "forward_micro_batch_tokens": None,
        "global_batch_size": 8,
        "optim": OPTIM,
    }
    return ActorConfig(**(values | changes))


def save_hf_model(
    folder: Path,
    family: str = "qwen2",
    *,
    tied: bool = False,
    vocab_size: int = 131,
    num_groups: int = 2,
    seed: int = 0,
    head_dim: int | None = None,
) -> Path:
    """Write a random fp32 model of 4 layers, biases and norms random too, as a Hugging Face folder, and return it.

    llama3_rope: llama whose rotary scaling stretches an original context of 32 tokens to the 128 of all models.
    mistral_window: one that attends to 96 tokens. mistral_heads: one whose heads do not share out the hidden size.
    deepseek_math: llama with a key and value for every head.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    llama3 = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    changes: dict[str, Any] = {
        "qwen3": {"head_dim": 24},
        "llama3_rope": {"rope_scaling": llama3},
        "mistral": {"sliding_window": None},
        "mistral_window": {"sliding_window": 96},
        "mistral_heads": {"sliding_window": None, "head_dim": 24},
        "deepseek_math": {"num_key_value_heads": 4},
    }.get(family, {})
    changes = {"num_key_value_heads": num_groups} | changes | ({} if head_dim is None else {"head_dim": head_dim})
    config = AutoConfig.for_model(
        {"llama3_rope": "llama", "deepseek_math": "llama"}.get(family, family.partition("_")[0]),
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_theta=10000.0,
        **changes,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, param in model.named_parameters():
        if param.ndim == 1:
            param.data += torch.randn_like(param) * 0.1
        else:
            param.data = torch.randn_like(param) * 0.08 if "embed" in name else torch.randn_like(param) / 8
    model.save_pretrained(folder)
    return folder


class ScriptedEngine:
    """A rollout engine whose completions depend on the seed alone.

    It records the weights of a refit and does not use them: runs that differ in rounding see the same samples.
    """

    batch_size = None
    generates = True
    sleeps_between_rollouts = False

    def __init__(self, vocab_size: int):
        self.vocab_size, self.weight_version = vocab_size, None

    def refit(self, buckets, version: int, *, digests: bool = False) -> dict[str, int]:
        self.received = {name: tensor.clone() for bucket in buckets for name, tensor in bucket}
        self.weight_version = version
        return {name: digest(tensor) for name, tensor in self.received.items()} if digests else {}

    def invalidate(self, reason: str) -> None:
        self.weight_version = None

    def generate(self, prompts, params, seeds):
        return [self._completion(seed, params.max_tokens) for seed in seeds]

    def _completion(self, seed: int, max_tokens: int) -> Completion:
        rng = random.Random(seed)
        length = rng.randint(1, max_tokens)
        ids = tuple(rng.choices(range(self.vocab_size), k=length))
        text = rng.choice([r"\boxed{1}", r"\boxed{2}", "no box"])
        reason = "length" if length == max_tokens else "stop"
        return Completion(ids, (-1.0,) * length, text, reason, self.weight_version, seed)

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def small_config(
    folder: str, actor: dict, algo: dict, critic: dict | None = None, rollout: dict | None = None
) -> Config:
    """The quickstart's configuration for a model of `save_hf_model`, in updates and micro-batches of 4 samples."""
    sizes = {"micro_batch_size": 4, "forward_micro_batch_size": 4, "global_batch_size": 4}
    sizes |= {"micro_batch_tokens": "null", "forward_micro_batch_tokens": "null"}
    optim = {"optim.lr": 1e-3, "optim.lr_warmup_fraction": 0.0}
    actor = sizes | optim | actor
    critic = optim | {key: value for key, value in actor.items() if key in sizes} | (critic or {})
    sections = {
        "actor": actor,
        "critic": critic,
        "algo": {"ratio_tolerance": 1e-5} | algo,
        "model": {"path": folder},
        "rollout": rollout or {},
    }
    return compose(
        ["experiment=quickstart"]
        + [f"{name}.{key}={value}" for name, section in sections.items() for key, value in section.items()]
    )


def learner_of(config: Config, folder: str | Path, optim: OptimConfig, mesh: Mesh, **changes) -> Learner:
    """A learner of the model in `folder` in the configuration's precision and the mesh's layout."""
    deterministic = config.trainer.deterministic
    layout = replace(
        config.layout_of("actor" if changes.get("critic_seed") is None else "critic"),
        offload_adam_states=changes.pop("offload_adam_states", False),
    )
    return build_learner(open_source(folder), config.model, layout, optim, mesh, deterministic=deterministic, **changes)


@contextmanager
def scripted_roles(
    folder: str,
    actor_changes: dict,
    algo_changes: dict,
    critic_changes: dict | None = None,
    rollout_changes: dict | None = None,
    placement: dict | None = None,
) -> Iterator[Roles]:
    """Real actor, critic, reference and grader of the model in `folder`, with a scripted engine."""
    config = small_config(folder, actor_changes, algo_changes, critic_changes, rollout_changes)
    config = replace(config, placement=replace(config.placement, **(placement or {})))
    world = world_of(config)
    mesh, critics = world.actor, world.critic
    optim = config.actor.optim
    timer = PhaseTimer()
    hf = read_hf_config(folder)
    grader = RewardPool(1, timeout_s=20.0, memory_limit_mb=1024)
    length = 12
    facts = {"max_response_tokens": length, "timer": timer}
    actor: Actor | ModelElsewhere = ModelElsewhere()
    critic: Critic | ModelElsewhere = ModelElsewhere()
    if mesh.is_member:
        learner = learner_of(config, folder, optim, mesh, total_updates=8)
        keeps = config.rollout.ahead > 0
        actor = Actor(learner, hf, config.actor, config.algo, temperature=0.7, keeps_earlier=keeps, **facts)
    if critics.is_member:
        learner = learner_of(config, folder, optim, critics, total_updates=8, critic_seed=config.trainer.seed)
        critic = Critic(learner, config.critic, config.algo, **facts)
    step_state = StepState()
    sampling = SamplingParams(n=2, max_tokens=length, temperature=0.7, top_p=1.0, top_k=0, stop=(), stop_token_ids=(0,))
    yield Roles(
        config=config,
        world=world,
        actor=actor,
        estimator=GaeWithCritic(critic, config.algo, mesh, step_state),
        engine=ScriptedEngine(hf["vocab_size"]),
        grader=grader,
        gate=build_gate(
            config.rollout.consistency,
            config.algo,
            mesh,
            temperature=sampling.temperature,
            global_batch_size=config.actor.global_batch_size,
        ),
        sampling=sampling,
        pad_id=0,
        eos_id=0,
        timer=timer,
        step_state=step_state,
    )
    grader.close()
    leave_together()
    destroy_mesh()


def megatron_globals() -> list[str]:
    """Names of the groups and ranks that Megatron's parallel_state holds: none, as meshes are values."""
    from megatron.core import parallel_state

    is_set = [name for name, value in vars(parallel_state).items() if name.isupper() and value not in (None, {})]
    return [name for name in is_set if name.startswith("_") and name.endswith(("_GROUP", "_GROUPS", "_RANK", "_SIZE"))]
