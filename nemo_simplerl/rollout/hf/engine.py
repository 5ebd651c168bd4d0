"""The embedded engine: a transformers model on one device, sampled by the loop in decode.py."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from nemo_simplerl.rollout.base import Bucket, SamplingParams, check_request
from nemo_simplerl.rollout.completions import Completions, seeds_of
from nemo_simplerl.rollout.hf.decode import Decoded, decode
from nemo_simplerl.rollout.hf.kv_cache import ATTENTION
from nemo_simplerl.rollout.hf.sampling import uniforms
from nemo_simplerl.rollout.hf.steps import cuda_graph
from nemo_simplerl.rollout.hf.weights import copy_weights
from nemo_simplerl.rollout.hf_model import empty_model, read_config
from nemo_simplerl.rollout.stopping import StopRule, TextDecoder
from nemo_simplerl.rollout.weight_state import WeightState
from nemo_simplerl.rollout.work_batches import sample_indices, work_batches


class HfEngine:
    """A RolloutEngine of one rank. It reads config.json only: its weights come from the first refit.

    device, dtype: of the weights and activations; probabilities are float32 at least.
    tokenizer: decodes stop strings and the text of completions; None leaves `text` empty and refuses stop
    strings.
    max_batch_size: sequences decoded at once. Bounds memory. Changing it may change samples, through floating-point
        rounding only.
    max_model_len: longest prompt + response, tokens; None takes the model's position limit.
    vocab_limit: ids from here on (padding rows of the embedding) are never sampled; None samples all.
    cuda_graphs: decode through CUDA graphs where `device` is a GPU. Changing it changes samples as max_batch_size does.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        tokenizer: TextDecoder | None,
        max_batch_size: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_model_len: int | None = None,
        vocab_limit: int | None = None,
        cuda_graphs: bool = False,
    ):
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}.")
        self._device = torch.device(device)
        self._model: PreTrainedModel | None = _build_model(model_path, self._device, dtype)
        self._tokenizer = tokenizer
        self.batch_size = max_batch_size
        self.generates = True
        self.sleeps_between_rollouts = False  # only its weights stay on the GPU, and moving them takes time
        self._max_model_len = max_model_len or self._model.config.max_position_embeddings
        self.vocab_limit = vocab_limit
        self._capture = cuda_graph if cuda_graphs and self._device.type == "cuda" else None
        self._weight_state = WeightState()
        self._asleep = False

    @property
    def weight_version(self) -> int | None:
        return self._weight_state.version

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        """See RolloutEngine.refit. Tensors are copied into place and cast. A tied head may be left out."""
        buckets = iter(buckets)
        try:
            model = self._awake_model()
            with self._weight_state.replacing(version):
                return copy_weights(model, buckets, digests=digests)
        finally:
            for _ in buckets:
                pass

    def invalidate(self, reason: str) -> None:
        self._weight_state.invalidate(reason)

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]) -> Completions:
        """See RolloutEngine.generate."""
        model = self._awake_model()
        version = self._weight_state.require()
        vocab_size = model.config.vocab_size
        check_request(prompts, params, seeds, vocab_size=vocab_size, max_model_len=self._max_model_len)
        stop_rule = StopRule(params.stop, params.stop_token_ids, self._tokenizer, vocab_size)
        samples: list[int] = []
        parts: list[Completions] = []
        for batch in self._batches(prompts, params.n):
            batch_prompts = list(dict.fromkeys(sample // params.n for sample in batch))
            rank_of_prompt = {prompt: rank for rank, prompt in enumerate(batch_prompts)}
            batch_seeds = [seeds[sample] for sample in batch]
            decoded = decode(
                model,
                [prompts[index] for index in batch_prompts],
                np.array([rank_of_prompt[sample // params.n] for sample in batch]),
                uniforms(batch_seeds, params.max_tokens),
                params,
                stop_rule,
                self.vocab_limit,
                capture=self._capture,
            )
            samples += batch
            parts.append(self._completions(decoded, batch_seeds, version))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of a cache are too small for the gradients that come next
        return Completions.joined(parts).select(np.argsort(np.array(samples, dtype=np.int64)))

    def sleep(self) -> None:
        """Move the weights to host memory. Harmless when asleep."""
        if self._model is not None and not self._asleep:
            self._model.to("cpu")
            self._asleep = True

    def wake(self) -> None:
        """Bring the weights back: they are those of the last refit. Harmless when awake."""
        if self._model is not None and self._asleep:
            self._model.to(self._device)
            self._asleep = False

    def close(self) -> None:
        self._model = None

    def _awake_model(self) -> PreTrainedModel:
        if self._model is None:
            raise RuntimeError("the engine is closed; make a new one.")
        if self._asleep:
            raise RuntimeError("the engine is asleep; call wake() first.")
        return self._model

    def _batches(self, prompts: Sequence[Sequence[int]], n: int) -> Iterator[list[int]]:
        """Indices of the samples that are decoded together, batch by batch."""
        for batch in work_batches([len(prompt) for prompt in prompts], n, self.batch_size):
            samples = sample_indices(batch, n)
            for first in range(0, len(samples), self.batch_size):
                yield samples[first : first + self.batch_size]

    def _completions(self, decoded: Decoded, seeds: Sequence[int], version: int) -> Completions:
        is_token_RT = np.arange(decoded.tokens_RT.shape[1]) < decoded.lengths_R[:, None]
        completions = Completions.from_flat(
            decoded.tokens_RT[is_token_RT],
            decoded.logprobs_RT[is_token_RT],
            decoded.lengths_R,
            texts=[""] * len(seeds),
            is_stopped=decoded.is_stopped_R,
            versions=np.full(len(seeds), version),
            seeds=seeds_of(seeds),
        )
        return completions.with_texts(self._tokenizer)


def _build_model(path: str | Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of uninitialised weights. The caller's random state is left as it was."""
    config = read_config(path)
    if odd := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise ValueError(
            f"{path} has layers of kind {sorted(odd)}; this engine decodes full attention only. "
            "For a Qwen2 model set use_sliding_window to false in config.json."
        )
    model = empty_model(config, device, dtype, attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)
