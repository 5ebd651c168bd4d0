"""The samplers of the double: its own, and one with the draws of the hf engine, so that runs can be compared.

A sampler answers, a request: token ids, an entry of log-probabilities a token, and whether a stop token ended it.
"""

import torch

from tensorrt_llm.executor.result import Logprob

_TORCH_FOLLOWS_SEEDS = False


def _is_torch(llm_args) -> bool:
    return getattr(llm_args, "sampler_type", "TorchSampler") == "TorchSampler"


def _is_raw(params) -> bool:
    """Whether TorchSampler reports log-probabilities of the raw logits for these parameters."""
    return getattr(getattr(params, "logprobs_mode", None), "name", "RAW") == "RAW"


class OwnSampler:
    """A sampler that runs one request at a time and one forward pass a token: slow and simple.

    TRTLLMSampler: a stream a seed, and log-probabilities at the sampling temperature. TorchSampler: up to 1.3 one
    stream for all, whatever the seeds; log-probabilities of the raw logits, unless 1.3 or later are asked for others.
    """

    def __init__(self, llm_args):
        self._args = llm_args
        self._is_torch = _is_torch(llm_args)
        self._one_stream = torch.Generator().manual_seed(42)

    def __call__(self, model, requests) -> list[tuple[list[int], list[dict], bool]]:
        return [self._one(model, prompt, params) for prompt, params in requests]

    def _one(self, model, prompt, params):
        own = torch.Generator().manual_seed((params.seed or 0) % 2**63)
        stream = self._one_stream if self._is_torch and not _TORCH_FOLLOWS_SEEDS else own
        is_raw = self._is_torch and _is_raw(params)
        room = (self._args.max_seq_len or model.config.max_position_embeddings) - len(prompt)
        stops = {params.end_id, *(params.stop_token_ids or ())}
        ids, entries = [], []
        while len(ids) < min(params.max_tokens, room):
            raw = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            if params.embedding_bias is not None:
                raw = raw + params.embedding_bias
            adjusted = raw / (params.temperature or 1.0)
            logprobs = (raw if is_raw else adjusted).log_softmax(-1)
            likeliest = int(raw.argmax())
            token = likeliest if params.is_greedy else int(torch.multinomial(adjusted.softmax(-1), 1, generator=stream))
            entries.append({likeliest: Logprob(float(logprobs[likeliest]), 1)})
            entries[-1][token] = Logprob(float(logprobs[token]), None)
            ids.append(token)
            if token in stops:
                return ids, entries, True
        return ids, entries, False


class HfEngineSampler:
    """The draws of `nemo_simplerl.rollout.hf.engine.HfEngine`, seed by seed."""

    def __init__(self, llm_args):
        from nemo_simplerl.rollout.hf.engine import HfEngine

        self._max_seq_len = llm_args.max_seq_len
        self._is_torch = _is_torch(llm_args)
        self._engine = HfEngine(
            llm_args.model,
            tokenizer=None,
            max_batch_size=llm_args.max_batch_size,
            dtype=getattr(torch, llm_args.dtype),
            max_model_len=llm_args.max_seq_len,
        )

    def __call__(self, model, requests) -> list[tuple[list[int], list[dict], bool]]:
        from nemo_simplerl.rollout.base import SamplingParams

        self._engine.refit([list(model.named_parameters())], 0)
        params = requests[0][1]
        if self._is_torch and _is_raw(params) and not params.is_greedy and params.temperature != 1:
            raise NotImplementedError("the double: the draws of the hf engine with log-probabilities of raw logits")
        bias = params.embedding_bias
        self._engine.vocab_limit = None if bias is None else int((bias == 0).sum())
        # As the hf engine is called: once with n samples a prompt, where the requests allow it.
        prompts = list(dict.fromkeys(tuple(ids) for ids, _ in requests))
        n = len(requests) // len(prompts)
        if [tuple(ids) for ids, _ in requests] != [prompt for prompt in prompts for _ in range(n)]:
            prompts, n = [tuple(ids) for ids, _ in requests], 1
        asked = SamplingParams(
            n=n,
            # Shortened in silence where there is no room, as the real engine does.
            max_tokens=min(params.max_tokens, self._max_seq_len - max(len(ids) for ids, _ in requests)),
            temperature=0.0 if params.is_greedy else params.temperature,
            top_p=params.top_p,
            top_k=0 if params.is_greedy else params.top_k,
            stop=(),
            stop_token_ids=tuple(params.stop_token_ids or ()),
        )
        completions = self._engine.generate(prompts, asked, [given.seed for _, given in requests])
        return [
            (list(done.token_ids), [_entry(*pair) for pair in zip(done.token_ids, done.logprobs, strict=True)],
             done.finish_reason == "stop")
            for done in completions
        ]  # fmt: skip


def _entry(token: int, logprob: float) -> dict:
    """Log-probabilities by token as the real engine reports them: the most probable token may come first."""
    return {token + 1: Logprob(0.0, 1), token: Logprob(logprob, 2)}


SAMPLERS = {"own": OwnSampler, "hf_engine": HfEngineSampler}
