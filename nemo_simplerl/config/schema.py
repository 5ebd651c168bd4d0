"""The typed configuration: one frozen dataclass a section. Values live in conf/*.yaml, so no field has a default here.

The comment beside or above a field says what the key means, in words for the person who sets it. Key names are NeMo's
and Megatron's where they exist. Counts are plain integers, times are seconds, lengths are tokens.
Imports nothing but the standard library: a wrong configuration is reported before torch loads.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from nemo_simplerl.config.placement import PlacementConfig


@dataclass(frozen=True, kw_only=True)
class CreateConfig:
    """A random-weight Qwen2 model and a byte-level BPE tokenizer, made where `model.path` does not exist yet."""

    hidden_size: int  # width of the residual stream
    num_layers: int  # transformer layers
    num_attention_heads: int  # query heads of a layer
    num_query_groups: int  # key and value heads of a layer; a divisor of num_attention_heads
    ffn_hidden_size: int  # inner width of the MLP
    vocab_size: int  # rows of the embedding; the tokenizer learns at most so many tokens
    max_position_embeddings: int  # longest prompt and response together, tokens
    share_embeddings_and_output_weights: bool  # one matrix for the input and the output embeddings


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that training starts from, and how it is computed."""

    path: str  # a Hugging Face folder, a .nemo, a training checkpoint (checkpoints/step_N), or a form of docs/forms.md
    tokenizer: str | None  # a folder with tokenizer.json; null: the tokenizer in model.path
    precision: Literal["bf16", "fp32"]  # of weights and activations; log-probabilities are always float32
    transformer_engine: bool | None  # null: use Transformer Engine layers where the package and a GPU are, in bf16
    apply_rope_fusion: bool | None  # rotate by Transformer Engine's kernel; null: where its layers are used
    gradient_accumulation_fusion: bool  # weight gradients are added to the float32 buffer by Apex's kernel
    fp8: Literal["e4m3", "hybrid"] | None  # format of matrix products in Transformer Engine layers; null: none in FP8
    # How FP8 scales are found, always from the tensors they scale. Transformer Engine's "delayed" recipe needs a
    # history of past tensors, which checkpoints do not hold.
    fp8_recipe: Literal["tensorwise", "blockwise", "mxfp8"]
    create: CreateConfig | None  # sizes of a model to make where model.path does not exist; null: it must exist


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning-rate schedule."""

    lr: float  # learning rate at its highest
    min_lr: float  # floor of the decay, reached at the last update
    lr_decay_style: Literal["constant", "linear", "cosine"]  # shape of the fall from lr to min_lr
    lr_warmup_fraction: float  # share of all updates in which the rate rises linearly from 0 to lr
    weight_decay: float  # decoupled from the gradient, as in AdamW
    adam_beta1: float  # decay of the mean of gradients
    adam_beta2: float  # decay of the mean of squared gradients
    adam_eps: float  # added to the root of the mean of squared gradients
    clip_grad: float  # bound on the global L2 norm of the gradients; 0 switches clipping off


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The policy, and the parallel layout of actor and reference, which is the critic's too where it names none."""

    tensor_model_parallel_size: int  # ranks that share each layer
    pipeline_model_parallel_size: int  # stages that the layers are divided into
    context_parallel_size: int  # ranks that share each sequence; only 1 is supported yet
    sequence_parallel: bool  # divide the norms' activations over the tensor-parallel ranks
    use_distributed_optimizer: bool  # divide the optimizer's state over the data-parallel ranks
    overlap_grad_reduce: bool  # sum gradients over ranks while the last micro-batch of an update still computes
    # Between the updates of a role, keep its Adam moments and float32 weights in host memory and free its gradients.
    offload_adam_states: bool
    # Activations to compute again in the backward pass: full keeps each layer's input alone, selective computes
    # attention again, null keeps everything.
    recompute_granularity: Literal["full", "selective"] | None
    micro_batch_size: int  # samples a rank holds in one forward and backward pass
    forward_micro_batch_size: int  # samples a rank holds in one pass without gradients
    # Tokens a rank holds in one forward and backward pass, samples end to end without padding; null: padded rows, as
    # many as micro_batch_size says.
    micro_batch_tokens: int | None
    forward_micro_batch_tokens: int | None  # the same for a pass without gradients
    global_batch_size: int  # samples in one update, over all data-parallel ranks
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The value model, in the parallel layout of the actor or in one of its own."""

    path: str | None  # a critic or another model of the same tokenizer, in any form; null: model.path, a fresh head
    tensor_model_parallel_size: int | None  # ranks that share each layer; null: as many as the actor's
    pipeline_model_parallel_size: int | None  # stages that the layers are divided into; null: as many as the actor's
    micro_batch_size: int  # samples a rank holds in one forward and backward pass
    forward_micro_batch_size: int  # samples a rank holds in one pass without gradients
    # Tokens a rank holds in one forward and backward pass, samples end to end without padding; null: padded rows, as
    # many as micro_batch_size says.
    micro_batch_tokens: int | None
    forward_micro_batch_tokens: int | None  # the same for a pass without gradients
    global_batch_size: int  # samples in one update, over all data-parallel ranks
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """What to do when the engine's log-probabilities of its samples are not the trainer's. Both are always measured.

    The bound is broken by more than `max_share` of the tokens beyond `max_difference`, and by any value that is not
    finite. `warn`, `mask` and `correct` then log a warning, `stop` ends the run. Whether the bound is broken or not,
    `mask` leaves exactly the tokens beyond `max_difference` out of the policy loss, and `correct` multiplies each
    token's weight in it by min(p / q, importance_cap), p being the trainer's probability of the token and q the
    engine's.
    """

    policy: Literal["off", "warn", "mask", "correct", "stop"]  # what to do where the two differ
    max_difference: float  # largest difference of one token's log-probability that counts as rounding, nats
    max_share: float  # share of tokens that may differ by more; 1 tolerates any difference that is finite
    importance_cap: float  # bound on the weight that `correct` gives a token


@dataclass(frozen=True, kw_only=True)
class TrtllmConfig:
    """TensorRT-LLM as the engine. It shares the GPUs with the trainer, so its memory is what the trainer leaves it."""

    tensor_parallel_size: int  # ranks that one engine spans; independent of the training layout
    free_gpu_memory_fraction: float  # the KV cache's share of the memory that is free once the weights are there
    max_batch_size: int  # sequences decoded at once
    max_num_tokens: int  # tokens of all requests in one forward pass; no prompt may be longer
    sampler_type: Literal["TRTLLMSampler", "TorchSampler"]  # TorchSampler ignores seeds before TensorRT-LLM 1.4
    cuda_graph: bool  # decode through captured CUDA graphs
    sleep: bool  # hand the engine's memory to the trainer between rollouts; costs host memory of the weights' size
    engine_args: dict[str, Any]  # arguments of TensorRT-LLM's own, which override all of the above


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM as the engine, in a process of another Python environment. On GPUs it shares those of the trainer."""

    python: str | None  # runs vLLM; null: $SIMPLERL_VLLM_PYTHON, else the repository's .venv-vllm/bin/python
    tensor_parallel_size: int  # ranks that one engine spans; independent of the training layout
    gpu_memory_utilization: float  # share of the whole GPU for its weights, activations and KV cache together
    cpu_kv_cache_mb: int  # host memory of its KV cache where the trainer runs on CPUs
    max_batch_size: int  # sequences decoded at once
    max_num_tokens: int  # tokens of all requests in one forward pass; on CPUs at least one prompt and response
    cuda_graph: bool  # compile the model and decode through captured CUDA graphs
    sleep: bool  # hand the GPU's memory to the trainer between rollouts; every refit brings all weights anew
    start_timeout_s: float  # seconds that the engine may take to start
    timeout_s: float  # seconds without a sign of life from a started engine after which it is ended
    engine_args: dict[str, Any]  # arguments of vllm.LLM, which override all of the above


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled, and by which engine."""

    engine: Literal["hf", "trtllm", "vllm"]  # hf: transformers in the trainer's process; the others: docs/engines.md
    # 1: a step's completions are sampled while the step before it trains, by weights that are one refit old, and each
    # token of the policy loss is weighed by the ratio of both policies. 0: by the weights that the step trains.
    ahead: int
    n_samples_per_prompt: int  # completions of each prompt in a step
    # mixed: a prompt whose responses are all right or all wrong makes room for another prompt (DAPO).
    keep_groups: Literal["all", "mixed"]
    max_rounds: int  # sampling rounds of a step under `mixed`; what is then lacking is filled with groups left out
    max_prompt_tokens: int  # longer prompts are treated as data.overlong_prompts says
    max_response_tokens: int  # a longer response is cut
    temperature: float  # above 0; evaluation has a greedy setting of its own
    top_p: float  # sample from the most probable tokens that reach this probability together; 1.0 keeps all
    top_k: int  # sample from this many most probable tokens; 0 keeps all
    stop: list[str]  # texts that end a response; they stay in it
    stop_token_ids: list[int] | None  # null: EOS, generation_config.json's and every stop string that is one token
    max_batch_size: int  # sequences the hf engine decodes at once; work is handed to ranks in such batches
    cuda_graphs: bool  # the hf engine launches a decoding step as one CUDA graph, where it is on a GPU
    # When to compare what the engines hold with what was sent, tensor by tensor: in every refit, or in a process's
    # first and in every Nth step. Names, shapes and versions are always compared.
    verify_refit: Literal["every", "off"] | int
    refit_bucket_mb: int  # weights travel to the engine in parts of this size; two of them take memory at a time
    consistency: ConsistencyConfig
    trtllm: TrtllmConfig  # read only where rollout.engine is trtllm
    vllm: VllmConfig  # read only where rollout.engine is vllm


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What an answer is worth, and where it is graded."""

    # FILE.py:NAME, a function in the form of verl, TRL or OpenRLHF, whose numbers are the rewards; null: those below.
    function: str | None
    url: str | list[str] | None  # reward servers, http://HOST:PORT each; null: grade in worker processes of each rank
    correct: float  # reward of a boxed answer that is right
    incorrect: float  # reward of a boxed answer that is wrong
    no_answer: float  # reward of a response without a boxed answer
    # Responses that end in the last so many tokens before rollout.max_response_tokens lose up to overlong_penalty, in
    # proportion (DAPO); null: none do.
    overlong_buffer_tokens: int | None
    overlong_penalty: float  # what a response that reaches the limit loses
    num_workers: int  # grading processes of each rank
    timeout_s: float  # a response that takes longer to grade counts as incorrect
    memory_limit_mb: int  # memory that one grading process may use


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """The policy-gradient algorithm: PPO with a critic, or one of its kin. docs/algorithms.md has the equations."""

    # How advantages are estimated. gae: from a critic's values. group: a response's score above the mean of its
    # prompt's responses (GRPO). rloo: above the mean of the others. reinforce_pp: the reward to go, without a baseline.
    # reinforce_pp_baseline: score above the prompt's mean, without the group's deviation. Only gae has a critic.
    advantage: Literal["gae", "group", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
    gamma: float  # discount of later rewards, a token
    gae_lambda: float  # 0 trusts the critic's next value alone, 1 the observed rewards alone
    gae_lambda_critic: float | None  # the same for the returns that the critic is fitted to; null: gae_lambda
    # gae_lambda of a response of l tokens becomes 1 - 1 / (alpha * l), and 0 where that is negative; null: gae_lambda.
    gae_length_alpha: float | None
    divide_by_std: bool  # advantages of `group` are divided by the deviation of the prompt's scores
    normalize_advantages: bool  # whiten advantages over the whole rollout
    kl_coef: float  # weight of the KL penalty, in each token's reward or in the loss; 0: no reference policy is kept
    kl_estimator: Literal["k1", "k2", "k3", "abs"]  # of the divergence from the reference policy, token by token
    kl_in: Literal["reward", "loss"]  # where the KL penalty is counted
    kl_importance_weight: bool  # in the loss, each token's estimate is multiplied by the policy ratio
    reward_clip: float | None  # bound on the absolute value of a response's reward, before the KL penalty is added
    # clip: the smaller of the clipped and the unclipped objective (PPO). cispo: the clipped ratio as a constant weight
    # of the log-probability.
    policy_loss: Literal["clip", "cispo"]
    ratio_eps: float  # the policy ratio is clipped to 1 - ratio_eps ... 1 + ratio_eps
    ratio_eps_high: float | None  # the upper bound is 1 + ratio_eps_high; null: 1 + ratio_eps
    dual_clip: float | None  # bound on the ratio of tokens with a negative advantage; null: none
    ratio_level: Literal["token", "sequence"]  # sequence: the geometric mean of a response's token ratios (GSPO)
    cispo_ratio_min: float  # smallest weight of cispo; 0: no bound; read only where policy_loss is cispo
    cispo_ratio_max: float  # largest weight of cispo, the bound itself (5.0, not 1 + 4.0)
    value_clip: float | None  # bound on a value's change in a step; null: the plain squared error
    entropy_bonus: float  # weight of the policy's entropy in the loss
    positive_nll_coef: float  # weight of the negative log-likelihood of right responses in the loss; 0: none
    # What counts the same in a loss: every token, or every response; token_sum_over_max divides the sum over tokens by
    # responses times rollout.max_response_tokens, a constant (Dr. GRPO).
    loss_aggregation: Literal["token_mean", "seq_mean", "token_sum_over_max"]
    ppo_epochs: int  # passes over each rollout
    critic_warmup_steps: int  # first steps that train only the critic
    critic_warmup_lambda: float | None  # in these steps in place of the critic's lambda; 1: Monte-Carlo returns
    truncated: Literal["penalize", "mask"]  # responses cut at the limit: trained as graded, or left out of both losses
    overwrite_truncated_with_eos: bool  # true, as in the original recipe: a cut response ends in an EOS never sampled
    old_logprobs: Literal["trainer", "engine"]  # who computes them; "engine" spares most of a forward pass
    logprob_temperature: Literal["sampling", "one"]  # "one", as in the original recipe: sampled at T, trained at 1
    logprob_precision: Literal["fp32", "model"]  # "model", as in the original recipe: log-softmax in bf16
    ratio_tolerance: float | None  # bound on |ratio - 1| at the first update of a step; null only reports it

    @property
    def has_critic(self) -> bool:
        """Whether advantages are estimated from a critic's values; without one, no key of `critic` is read."""
        return self.advantage == "gae"

    @property
    def kl_coef_of_reward(self) -> float:
        """Weight of the KL penalty in each token's reward."""
        return self.kl_coef if self.kl_in == "reward" else 0.0

    @property
    def kl_coef_of_loss(self) -> float:
        """Weight of the KL penalty in the policy's loss."""
        return self.kl_coef if self.kl_in == "loss" else 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Problems to train and evaluate on, and how they become prompts."""

    train_path: str  # problems to train on: .json (a list of objects), .jsonl (one a line), .csv or .parquet
    eval_path: str | None  # problems to evaluate on, in the same form
    sft_path: str | None  # demonstrations of the warm start: question or prompt, and response; or messages
    sft_eval_path: str | None  # demonstrations held out of the warm start, for its evaluation loss
    question_field: str  # key of the question in train_path and eval_path; "a.b" is the key b of the object a
    answer_field: str  # key of the gold answer there
    rows_without_gold: Literal["error", "drop"]  # rows that have no gold answer, or one that no response can equal
    # The text around a question. "question-answer" is for base models, "chat" the tokenizer's own.
    template: Literal["qwen25-math-cot", "qwen-boxed", "abel", "question-answer", "none", "chat"]
    # Worked examples that stand before every question, in the form of the template: a list of {question, response,
    # answer}, or a file of such rows. Each response must be graded right against its answer. null: none.
    examples: list[dict[str, Any]] | str | None
    prompt_trailing_newline: bool  # the prompt ends in a line break; in the original recipe in evaluation only
    overlong_prompts: Literal["drop", "truncate", "error"]  # "truncate", as in the original recipe, cuts the prompt
    rollout_batch_size: int  # prompts in a step
    shuffle: bool  # a new order of problems in every episode
    eval_limit: int | None  # evaluate on the first so many problems; null: on all
    # Write problems made from trainer.seed to the files where they are missing: short arithmetic with demonstrations,
    # word problems of one and two steps, or of two steps alone; null: the files must be there.
    generate: Literal["arithmetic", "word_problems", "two_step_problems"] | None


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The warm start. It reads data.sft_path and writes a Hugging Face folder that PPO starts from."""

    output: str | None  # folder to write; null: no warm start, and PPO starts from model.path
    epochs: int  # passes over the demonstrations
    save_every: int  # updates between checkpoints; 0 saves only the result
    eval_every: int  # updates between evaluations on data.sft_eval_path and data.eval_path; 0: none
    max_tokens: int  # longest prompt and response together
    overlong: Literal["drop", "error"]  # what to do with longer ones
    micro_batch_size: int  # samples a rank holds in one forward and backward pass
    micro_batch_tokens: int | None  # tokens a rank holds in one such pass; null: rows, as micro_batch_size says
    global_batch_size: int  # samples in one update, over all data-parallel ranks
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """When the log warns of a metric, once a run each. An alarm stops nothing."""

    window: int  # earlier steps that a metric is compared with; there is no alarm before that many
    spike_factor: float  # alarm on a value loss, gradient norm or KL above so many times its median
    min_entropy: float  # alarm on an entropy below it, nats a token, of a policy that had twice as much
    # Alarm on a reward that stays below this share of the way from reward.no_answer to the best so far.
    min_reward_share: float


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Ends all ranks where one is dead, frozen, failed or stuck, and says which. Of a single rank it says where."""

    enabled: bool  # watch the ranks
    dead_after_s: float  # a rank's process that shows no sign of life for so long is dead
    # Seconds after which a phase or wait counts as stuck, by its name (config/rules/watchdog.py lists them). What has
    # no limit is stuck when nothing begins or ends for trainer.distributed_timeout_s.
    limits_s: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases beside metrics.jsonl. It takes account and team from `wandb login` and WANDB_ENTITY."""

    enabled: bool  # log there too
    project: str  # project that the run belongs to
    name: str | None  # name of the run; null: the last part of trainer.run_dir
    group: str | None  # group of runs that it belongs to
    mode: Literal["online", "offline"] | None  # null: as the variable WANDB_MODE says, and online where it is not set
    samples_every: int  # steps between two tables of samples; 0: none


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The run: its folder, length, evaluation, checkpoints and guards."""

    run_dir: str  # folder of the run: config, metrics, samples, checkpoints
    seed: int  # decides the order of problems, every sample, and weights that start random
    max_steps: int | None  # steps of the run; null: num_episodes passes over the data
    num_episodes: int  # passes over the data, where max_steps does not end the run before
    eval_every: int  # steps between evaluations; 0 evaluates only at the start and the end
    eval_samples: int  # sampled responses to each problem beside the greedy one; 0: greedy alone
    # Steps between checkpoints; null: a tenth of the run, 20 at the most; 0 saves only at the end.
    save_every: int | None
    async_save: bool  # train on while a checkpoint is written; what is on the device is copied to host memory for it
    keep_last: int  # newest checkpoints kept on disk
    keep_every: int  # keep the checkpoints of every Nth step too; 0: none
    # Keep the checkpoint that is best by this metric too; null: none.
    keep_best: Literal["eval/accuracy", "eval/sampled_accuracy", "eval/format_rate"] | None
    export: list[Literal["hf", "nemo"]]  # forms that the last weights are written in at the end, below run_dir
    resume: bool  # continue from the newest checkpoint in run_dir
    resume_allow: list[str]  # keys or sections in which this run may differ from the one it continues
    stop_after_step: int | None  # save and end after this step; learning-rate schedules keep their full length
    max_time: str | None  # save and end after DD:HH:MM:SS from the start of the process; null: no limit
    tensorboard: bool  # write TensorBoard files beside metrics.jsonl
    wandb: WandbConfig
    distributed_timeout_s: int  # a collective operation that takes longer fails
    max_bad_updates: int  # updates with numbers that are not finite are left out; more of them than this end the run
    deterministic: bool  # GPU kernels that give the same bits every time, where there are such; slower
    alarms: AlarmsConfig
    watchdog: WatchdogConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration, a section a field."""

    model: ModelConfig
    actor: ActorConfig
    critic: CriticConfig
    placement: PlacementConfig
    rollout: RolloutConfig
    reward: RewardConfig
    algo: AlgoConfig
    data: DataConfig
    sft: SftConfig
    trainer: TrainerConfig

    def layout_of(self, role: str) -> ActorConfig:
        """The section `actor` with the parallel sizes of the model of `role`, "actor" or "critic".

        Sequence parallelism is off in a model that has no tensor ranks to divide activations over.
        """
        layout = self.actor
        if role == "critic":
            tensor, pipeline = self.critic.tensor_model_parallel_size, self.critic.pipeline_model_parallel_size
            layout = replace(
                layout,
                tensor_model_parallel_size=tensor or layout.tensor_model_parallel_size,
                pipeline_model_parallel_size=pipeline or layout.pipeline_model_parallel_size,
            )
        has_tensor_ranks = layout.tensor_model_parallel_size > 1
        return replace(layout, sequence_parallel=layout.sequence_parallel and has_tensor_ranks)
