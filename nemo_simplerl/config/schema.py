"""The typed configuration: one frozen dataclass a section. Values live in conf/*.yaml, so no field has a default here.

Key names are NeMo's and Megatron's where they exist. Counts are plain integers, times are seconds, lengths are tokens.
Imports nothing but the standard library: a wrong configuration is reported before torch loads.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CreateConfig:
    """A random-weight Qwen2 model and a byte-level BPE tokenizer, made where `model.path` does not exist yet."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    share_embeddings_and_output_weights: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str  # a Hugging Face folder, a .nemo file or folder, or a training checkpoint (checkpoints/step_N)
    tokenizer: str | None  # null: the tokenizer in `path`
    precision: Literal["bf16", "fp32"]  # of weights and activations; log-probabilities are always float32
    transformer_engine: bool | None  # null: use Transformer Engine layers where the package and a GPU are, in bf16
    apply_rope_fusion: bool | None  # null: where Transformer Engine layers are used
    gradient_accumulation_fusion: bool  # weight gradients added to the float32 buffer by Apex's kernel
    fp8: Literal["e4m3", "hybrid"] | None  # matrix products of Transformer Engine layers, actor's and critic's
    # Those whose scales come from the tensors at hand: "delayed" has a history, which checkpoints do not hold.
    fp8_recipe: Literal["tensorwise", "blockwise", "mxfp8"]
    create: CreateConfig | None  # null: `path` must exist


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float
    min_lr: float  # floor of the decay, reached at the last update
    lr_decay_style: Literal["constant", "linear", "cosine"]
    lr_warmup_fraction: float  # share of all updates spent rising linearly from 0 to lr
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    clip_grad: float  # global L2 norm; 0 switches clipping off


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The policy, and the parallel layout that actor, critic and reference share."""

    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    context_parallel_size: int
    sequence_parallel: bool
    use_distributed_optimizer: bool
    overlap_grad_reduce: bool  # while the last micro-batch of an update still computes
    # Between a role's updates its moments and float32 masters wait in host memory, and gradients have none at all.
    offload_adam_states: bool
    recompute_granularity: Literal["full", "selective"] | None
    micro_batch_size: int  # samples a rank holds in one forward + backward
    forward_micro_batch_size: int  # samples a rank holds in one forward-only pass
    # Tokens a rank holds in one pass, sequences end to end without padding; null: rows, as many as the sizes above say.
    micro_batch_tokens: int | None
    forward_micro_batch_tokens: int | None
    global_batch_size: int  # samples in one update, over all data-parallel ranks
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    path: str | None  # null: trunk from model.path and a fresh value head; or a saved critic, in any form
    micro_batch_size: int
    forward_micro_batch_size: int
    micro_batch_tokens: int | None
    forward_micro_batch_tokens: int | None
    global_batch_size: int
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """What to do when the engine's log-probabilities of its samples are not the trainer's. Both are always measured.

    It is tripped by more than `max_share` of the tokens beyond `max_difference`, and by any that is not finite. Every
    policy but `off` then says so, and `stop` ends the run. Tripped or not, `mask` leaves exactly the tokens beyond the
    bound out of the policy loss, and `correct` multiplies each token's weight in it by min(p / q, importance_cap), p
    being the trainer's probability of the token and q the engine's.
    """

    policy: Literal["off", "warn", "mask", "correct", "stop"]
    max_difference: float  # nats, of one token
    max_share: float  # of the tokens; 1 tolerates any difference that is finite
    importance_cap: float


@dataclass(frozen=True, kw_only=True)
class TrtllmConfig:
    """TensorRT-LLM as the engine. It shares the GPUs with the trainer, so its memory is what the trainer leaves it."""

    tensor_parallel_size: int  # ranks that one engine spans; the training layout is another
    free_gpu_memory_fraction: float  # of what is free once the weights are there: the KV cache's share
    max_batch_size: int  # sequences decoded at once
    max_num_tokens: int  # tokens of all requests in one forward pass; no prompt may be longer
    sampler_type: Literal["TRTLLMSampler", "TorchSampler"]  # TorchSampler has one random stream and ignores seeds
    cuda_graph: bool
    sleep: bool  # hand the engine's memory to the trainer between rollouts; costs host memory of the weights' size
    engine_args: dict[str, Any]  # TensorRT-LLM's own arguments, laid over all of the above as they are


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: Literal["hf", "trtllm"]
    n_samples_per_prompt: int
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float  # 0 is refused: training samples, evaluation has its own greedy setting
    top_p: float  # 1.0 switches nucleus sampling off
    top_k: int  # 0 switches it off
    stop: list[str]  # text that ends a response; kept in it
    stop_token_ids: list[int] | None  # null: the tokenizer's EOS and every stop string that is one token
    max_batch_size: int  # sequences the hf engine decodes at once; ranks are handed batches, whatever their number
    # Compare what the engines hold with what was sent, tensor by tensor: in every refit, or in a process's first and in
    # steps that a number divides. Names, shapes and versions are always compared.
    verify_refit: Literal["every", "off"] | int
    refit_bucket_mb: int  # weights travel to the engine in parts of this size; two take memory at a time
    consistency: ConsistencyConfig
    trtllm: TrtllmConfig  # read where engine is trtllm


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    url: str | list[str] | None  # of reward servers; null: workers on this machine, as the three last keys say
    correct: float
    incorrect: float
    no_answer: float
    num_workers: int
    timeout_s: float  # a response that takes longer is graded incorrect and counted
    memory_limit_mb: int


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    gamma: float
    gae_lambda: float
    kl_coef: float  # 0: no reference policy is kept and no reference pass is made
    kl_estimator: Literal["k1", "k2", "k3", "abs"]
    reward_clip: float | None  # bound on the absolute value of the score, before the KL term
    normalize_advantages: bool  # whiten over the whole rollout
    ratio_eps: float  # policy clip
    value_clip: float | None  # null: plain squared error
    entropy_bonus: float
    loss_aggregation: Literal["token_mean", "seq_mean"]
    ppo_epochs: int
    critic_warmup_steps: int  # steps that train only the critic
    truncated: Literal["penalize", "mask"]  # responses ended by length: trained as graded, or left out of both losses
    overwrite_truncated_with_eos: bool  # the seed's quirk: a cut response ends in an EOS it never sampled
    old_logprobs: Literal["trainer", "engine"]  # "engine" spares most of the pass that computes them
    logprob_temperature: Literal["sampling", "one"]  # "one" is the seed's quirk: sampled at T, trained at 1
    logprob_precision: Literal["fp32", "model"]  # "model" is the seed's quirk: log-softmax in bf16
    ratio_tolerance: float | None  # bound on |ratio - 1| at the first update of a step; null only reports it


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train_path: str  # .json, .jsonl
    eval_path: str | None
    sft_path: str | None  # .jsonl of {question | prompt, response}: the warm start
    sft_eval_path: str | None  # the same, held out of it; for its loss
    question_field: str
    answer_field: str
    rows_without_gold: Literal["error", "drop"]
    template: Literal["qwen25-math-cot", "qwen-boxed", "abel", "none", "chat"]  # "chat": the tokenizer's own
    prompt_trailing_newline: bool  # the seed trained without and evaluated with the newline after "assistant"
    overlong_prompts: Literal["drop", "truncate", "error"]  # "truncate" is the seed's quirk
    rollout_batch_size: int  # prompts a step
    shuffle: bool
    eval_limit: int | None
    generate: Literal["arithmetic"] | None  # a seeded generator writes the three files where they do not exist


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The warm start. It reads data.sft_path and writes a Hugging Face folder that PPO starts from."""

    output: str | None  # null: no warm start; PPO starts from model.path
    epochs: int
    save_every: int  # updates; 0 saves only the result
    eval_every: int  # updates; loss of data.sft_eval_path, accuracy on data.eval_path; 0: neither
    max_tokens: int
    overlong: Literal["drop", "error"]
    micro_batch_size: int
    micro_batch_tokens: int | None
    global_batch_size: int
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """When a line is said about a metric, once a run; nothing is stopped."""

    window: int  # steps before this one whose median it is held against; less than that many raise no alarm
    spike_factor: float  # a loss or gradient norm above so many times the median
    min_entropy: float  # nats a token, of a policy that had twice as much
    min_reward_share: float  # of the way from reward.no_answer to the best mean reward so far


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Ends all ranks where one is dead, frozen, failed or stuck, and says which. For one rank: where it is stuck."""

    enabled: bool
    dead_after_s: float  # without a sign of life of a rank's process
    # By phase or wait (config.rules.watchdog.NAMES): longer is stuck. Where none is limited:
    # trainer.distributed_timeout_s in which no phase, wait or update begins or ends.
    limits_s: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases beside metrics.jsonl. Account and team are its own (`wandb login`, WANDB_ENTITY)."""

    enabled: bool
    project: str
    name: str | None  # null: the last part of trainer.run_dir
    group: str | None
    mode: Literal["online", "offline"] | None  # null: as WANDB_MODE says, and online where it says nothing
    samples_every: int  # steps between two tables of samples; 0: none


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    run_dir: str
    seed: int
    max_steps: int | None  # null: num_episodes passes over the data
    num_episodes: int
    eval_every: int  # steps; 0 evaluates only at the start and the end
    eval_samples: int  # sampled responses a problem beside the greedy one; 0 for greedy alone
    save_every: int  # steps; 0 saves only at the end
    async_save: bool  # train on while the checkpoint is written; costs host memory of the size of what a rank writes
    keep_last: int  # newest checkpoints kept on disk
    keep_every: int  # and those of every Nth step; 0: none
    keep_best: Literal["eval/accuracy", "eval/sampled_accuracy", "eval/format_rate"] | None  # and the best by this
    export: list[Literal["hf", "nemo"]]  # forms that the last weights are written in at the end, below run_dir
    resume: bool  # continue from the newest checkpoint in run_dir
    resume_allow: list[str]  # keys or sections in which this run may differ from the one it continues
    stop_after_step: (
        int | None
    )  # save and end early, as a scheduler's time limit would; schedules keep their full length
    max_time: str | None  # DD:HH:MM:SS from the start of the process; then the run saves and ends. null: no limit
    tensorboard: bool
    wandb: WandbConfig
    distributed_timeout_s: int
    max_bad_updates: int  # updates of numbers that are not finite are left out; more of them over the run end it
    deterministic: bool  # GPU kernels that give the same bits every time, where there are such; slower
    alarms: AlarmsConfig
    watchdog: WatchdogConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    model: ModelConfig
    actor: ActorConfig
    critic: CriticConfig
    rollout: RolloutConfig
    reward: RewardConfig
    algo: AlgoConfig
    data: DataConfig
    sft: SftConfig
    trainer: TrainerConfig
