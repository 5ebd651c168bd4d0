"""TRL's side of step.py: trl.experimental.ppo.PPOTrainer, stopped between its steps. Tried with TRL 1.12.0.

What differs from this project's step is TRL's own: old log-probabilities come from the scores of `generate`, every pass
pads to the rollout's longest response, and a metric takes the entropy over the whole vocabulary.
"""

import itertools
import sys
import tempfile
import time
from importlib.metadata import version

import torch
import work
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def main(model: str, variant: str, num_prompts: str) -> None:
    turns = work.Turns()
    given = work.work_of(model, variant, int(num_prompts))
    config = work.hf_config(given.shape)
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(1)
    critic = AutoModelForSequenceClassification.from_config(work.hf_config(given.shape, num_labels=1))
    samples = len(given.lengths)
    rows = [{"input_ids": prompt} for prompt in given.prompt_of]
    clock = Clock(turns)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                learning_rate=work.LEARNING_RATE,
                per_device_train_batch_size=work.MICRO_BATCH,
                gradient_accumulation_steps=samples // work.MICRO_BATCH,
                num_mini_batches=max(samples // work.UPDATE, 1),
                local_rollout_forward_batch_size=work.UPDATE,
                total_episodes=samples * 10**6,
                num_ppo_epochs=1,
                response_length=given.longest,
                stop_token="eos" if given.is_varied else None,
                temperature=1.0,
                kl_coef=work.KL_COEF,
                cliprange=work.CLIP,
                cliprange_value=work.CLIP,
                gamma=work.GAMMA,
                lam=work.LAM,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=10**9,
            ),
            processing_class=work.tokenizer_of(given.shape),
            model=policy,
            ref_model=reference,
            reward_model=Reward(),
            value_model=critic,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
    # Its batch is as many micro-batches as are accumulated; the optimizer's step is to come after each mini-batch.
    trainer.accelerator.gradient_accumulation_steps = min(work.UPDATE, samples) // work.MICRO_BATCH
    policy.generate = clock.generation(told(policy.generate, given))
    trainer.model.register_forward_pre_hook(clock.first_update)
    ppo_trainer.get_reward = with_our_reward(ppo_trainer.get_reward)
    trainer.train()


class Clock(TrainerCallback):
    """Waits for a turn before each step of TRL's loop, and reports after it."""

    def __init__(self, turns: work.Turns):
        self.turns = turns

    def on_train_begin(self, args, state, control, **kwargs):
        self.turns.ready(**{name: version(name) for name in ("torch", "trl", "transformers")})
        self._wait()

    def on_step_end(self, args, state, control, **kwargs):
        ended = time.perf_counter()
        passes = self.update_began - self.began - self.generated
        self.turns.end(generation=self.generated, passes=passes, updates=ended - self.update_began)
        self._wait()

    def generation(self, generate):
        def timed(*args, **kwargs):
            began = time.perf_counter()
            output = generate(*args, **kwargs)
            self.generated += time.perf_counter() - began
            return output

        return timed

    def first_update(self, module, args) -> None:
        """Policy and critic are called together by updates alone."""
        self.update_began = self.update_began or time.perf_counter()

    def _wait(self) -> None:
        if not self.turns.begin():
            raise SystemExit
        self.began, self.generated, self.update_began = time.perf_counter(), 0.0, 0.0


def told(generate, given: work.Work):
    """`generate` with responses of the work's lengths: calls cover a step's responses in order."""
    lengths_of = itertools.cycle(torch.tensor(given.lengths).split(work.UPDATE))

    def generate_told(input_ids, **kwargs):
        processor = ToldLengths(input_ids.shape[1], next(lengths_of), given.is_varied)
        return generate(input_ids=input_ids, logits_processor=LogitsProcessorList([processor]), **kwargs)

    return generate_told


class ToldLengths(LogitsProcessor):
    """No special token but the EOS that a varied response ends with."""

    def __init__(self, prompt_columns: int, lengths_B: torch.Tensor, is_varied: bool):
        self.prompt_columns, self.lengths_B, self.is_varied = prompt_columns, lengths_B, is_varied

    def __call__(self, input_ids, scores):
        scores[:, : work.UNK + 1] = -torch.inf
        if self.is_varied:
            ends_B = self.lengths_B == input_ids.shape[1] - self.prompt_columns + 1
            scores[ends_B] = -torch.inf
            scores[ends_B, work.EOS] = 0.0
        return scores


class Reward(torch.nn.Module):
    """Stands where TRL wants a reward model; the score is the work's own."""


def with_our_reward(get_reward):
    def rewarded(model, query_responses, pad_token_id, context_length):
        if not isinstance(model, Reward):
            return get_reward(model, query_responses, pad_token_id, context_length)
        responses = [
            [id_ for id_ in row if id_ != pad_token_id] for row in query_responses[:, context_length:].tolist()
        ]
        return None, torch.tensor([work.reward(response) for response in responses]), None

    return rewarded


if __name__ == "__main__":
    main(*sys.argv[1:])
