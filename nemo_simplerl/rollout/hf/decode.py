"""Prefill and decoding of one batch of responses with a transformers model.

Shapes: P distinct prompts, R responses, B of them still running, L prompt columns, T new tokens, V vocabulary
ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.fixed_cache import FixedShapeCache
from nemo_simplerl.rollout.hf.kv_cache import FIRST_COLUMNS, SharedPromptCache, padding_mask
from nemo_simplerl.rollout.hf.sampling import sample
from nemo_simplerl.rollout.hf.steps import Capture, GraphedSteps, Steps, as_cache
from nemo_simplerl.rollout.stopping import StopRule

PREFILL_SCORES = 1 << 26  # bound on rows * columns**2 of one prefill, the size of its mask
MIN_START = 16  # tokens that all prompts begin with, below which a pass of their own costs more than it saves


@dataclass(frozen=True)
class Decoded:
    """The sampled responses of one batch."""

    tokens_RT: np.ndarray  # int64, valid up to lengths_R
    logprobs_RT: np.ndarray  # float32, likewise
    lengths_R: np.ndarray
    is_stopped_R: np.ndarray  # False: ended by length


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    prompt_of_R: np.ndarray,
    uniforms_RT: np.ndarray,
    params: SamplingParams,
    stop_rule: StopRule,
    vocab_limit: int | None,
    *,
    capture: Capture | None = None,
    prefill_scores: int = PREFILL_SCORES,
    first_columns: int = FIRST_COLUMNS,
) -> Decoded:
    """Sample one response a row; each prompt is computed once, and what all prompts begin with once for all.

    prompt_of_R: ascending indices into `prompts`. uniforms_RT: float64 draws in [0, 1), one a token. vocab_limit: ids
    from here on are never sampled. capture: has steps run as graphs, which read more of the cache than they need to:
    the same numbers, to rounding. prefill_scores, first_columns: bounds on memory, as `prefill` takes them.
    """
    num_rows, device = len(prompt_of_R), model.device
    tokens_RT = np.zeros((num_rows, params.max_tokens), dtype=np.int64)
    logprobs_RT = np.zeros((num_rows, params.max_tokens), dtype=np.float32)
    lengths_R = np.full(num_rows, params.max_tokens)
    is_stopped_R = np.zeros(num_rows, dtype=bool)
    prompt_lengths_R = np.array([len(prompt) for prompt in prompts])[prompt_of_R]
    draw = partial(
        sample, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, vocab_limit=vocab_limit
    )
    cache, logits_BV = prefill(
        model,
        prompts,
        prompt_of_R,
        params.max_tokens,
        max_scores=prefill_scores,
        first_columns=first_columns,
        cache_type=SharedPromptCache if capture is None else FixedShapeCache,
    )
    uniforms_BT = torch.from_numpy(uniforms_RT).to(device)
    given = model, cache, draw, torch.from_numpy(prompt_lengths_R).to(device), uniforms_BT
    steps = Steps(*given) if capture is None else GraphedSteps(*given, capture)
    rows_B = np.arange(num_rows)
    is_running_B = np.ones(num_rows, dtype=bool)
    tokens_B, logprobs_B = draw(logits_BV, uniforms_BT[:, 0])
    for step in range(params.max_tokens):
        running = rows_B[is_running_B]
        tokens_RT[running, step] = tokens_B.cpu().numpy()[is_running_B]
        logprobs_RT[running, step] = logprobs_B.cpu().numpy()[is_running_B]
        stopped = stop_rule.stopped(tokens_RT, running, step)
        lengths_R[running[stopped]] = step + 1
        is_stopped_R[running[stopped]] = True
        is_running_B[is_running_B] = ~stopped
        if step + 1 == params.max_tokens or stopped.all():
            break
        if not is_running_B.all() and (~is_running_B).mean() >= steps.ended_share:
            slots_B = steps.drop(~is_running_B)
            rows_B, tokens_B = rows_B[slots_B], tokens_B[torch.from_numpy(slots_B).to(device)]
            is_running_B = np.ones(len(rows_B), dtype=bool)
        tokens_B, logprobs_B = steps.after(tokens_B, step)
    return Decoded(tokens_RT, logprobs_RT, lengths_R, is_stopped_R)


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    prompt_of_R: np.ndarray,
    max_tokens: int,
    *,
    max_scores: int,
    first_columns: int,
    cache_type: type[SharedPromptCache] = SharedPromptCache,
) -> tuple[SharedPromptCache, Tensor]:
    """A cache that holds the prompts, and the logits [R, V] of each row's first new token.

    What all prompts begin with, such as worked examples, is computed once; then comes the padding of each, then the
    rest of it. max_scores: bound on prompts * columns**2 of one forward pass. first_columns: response tokens that the
    cache allocates at once.
    """
    device, dtype = model.device, model.dtype
    start = common_start(prompts)
    columns = max(len(prompt) for prompt in prompts)
    ids_PL = torch.zeros(len(prompts), columns - start, dtype=torch.int64)
    for index, prompt in enumerate(prompts):
        ids_PL[index, columns - len(prompt) :] = torch.tensor(prompt[start:])
    ids_PL = ids_PL.to(device)
    pad_P = torch.tensor([columns - len(prompt) for prompt in prompts], device=device)
    none = pad_P.new_zeros(1)
    shared = _passed(model, torch.tensor([prompts[0][:start]], device=device), none, [])[1] if start else []
    logits, layers = [], []
    chunk = max(1, max_scores // columns**2)
    for first in range(0, len(prompts), chunk):
        part = slice(first, first + chunk)
        logits_CV, keys_and_values = _passed(model, ids_PL[part], pad_P[part], shared)
        logits.append(logits_CV)
        layers.append(keys_and_values)
    keys_and_values = [tuple(map(torch.cat, zip(*chunks, strict=True))) for chunks in zip(*layers, strict=True)]
    mask = padding_mask(pad_P, columns, dtype, first=start)
    prompt_of_R = torch.tensor(prompt_of_R, device=device)
    cache = cache_type(keys_and_values, mask, prompt_of_R, max_tokens, first_columns)
    return cache, torch.cat(logits)[prompt_of_R]


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, each having one more at least; 0 where a pass of their own saves nothing."""
    if len(prompts) == 1:
        return 0
    start = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        start = next((i for i in range(start) if prompt[i] != prompts[0][i]), start)
    return start if start >= MIN_START else 0


def _passed(
    model: PreTrainedModel, ids_CL: Tensor, pad_C: Tensor, before: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits [C, V] behind the last tokens of a forward pass, and each layer's keys and values [C, H, S + L, D].

    before: those [1, H, S, D] of S tokens in front of every row; none where there are no such tokens.
    """
    start = before[0][0].shape[2] if before else 0
    cache = DynamicCache()
    for layer, tensors in enumerate(before):
        cache.update(*(tensor.expand(len(ids_CL), -1, -1, -1) for tensor in tensors), layer)
    logits_CV = model(
        input_ids=ids_CL,
        attention_mask=_prompt_mask(pad_C, ids_CL.shape[1], start, model.dtype),
        position_ids=start + (torch.arange(ids_CL.shape[1], device=ids_CL.device) - pad_C[:, None]).clamp_(min=0),
        **as_cache(model, cache),
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits_CV, [(layer.keys, layer.values) for layer in cache.layers]


def _prompt_mask(pad_B: Tensor, columns: int, start: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, S + L]: causal behind S columns that all see, without the padding that comes next."""
    whole = start + columns
    causal_LS = torch.full((columns, whole), torch.finfo(dtype).min, dtype=dtype, device=pad_B.device).triu_(1 + start)
    return torch.minimum(causal_LS, padding_mask(pad_B, whole, dtype, first=start))
