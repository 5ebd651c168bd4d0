"""The rollout engine of a run, and how it samples."""

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.data.tokenizer import num_ids, stop_ids
from nemo_simplerl.model.network.provider import DTYPES
from nemo_simplerl.model.readers.small_files import end_ids
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.elsewhere import EngineElsewhere
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.own_process.engine_group import consecutive_ranks


def sampling_of(rollout: RolloutConfig, tokenizer, folder: Path, stops: Sequence[str] = ()) -> SamplingParams:
    """The sampling parameters that rollout.* gives, with the stop tokens of the tokenizer and of the model in `folder`.

    stops: texts that end a response beside rollout.stop. Raises ValueError where the model's files name ids that it
    does not have.
    """
    of_model = end_ids(folder) if rollout.stop_token_ids is None else ()
    stop = (*rollout.stop, *(text for text in stops if text not in rollout.stop))
    return SamplingParams(
        n=rollout.n_samples_per_prompt,
        max_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=stop,
        stop_token_ids=stop_ids(tokenizer, stop, rollout.stop_token_ids, of_model),
    )


def build_engine(rollout: RolloutConfig, precision: str, folder: Path, mesh: Mesh, tokenizer) -> RolloutEngine:
    """The engine that rollout.engine names, for this rank, without weights. Collective over the world.

    mesh: of the ranks with engines; on others the answer is an EngineElsewhere.
    precision: model.precision, that of the weights which a refit brings. folder: the model's config.json and tokenizer.
    Rows of the embedding beyond the tokenizer's ids, which stand for no token, are never sampled.
    """
    group = _ranks_of_one_engine(rollout, mesh)
    if not mesh.is_member:
        return EngineElsewhere()
    values = {
        "tokenizer": tokenizer,
        "device": mesh.device,
        "dtype": DTYPES[precision],
        "max_model_len": rollout.max_prompt_tokens + rollout.max_response_tokens,
        "vocab_limit": num_ids(tokenizer),
    }
    if rollout.engine == "hf":
        return HfEngine(str(folder), max_batch_size=rollout.max_batch_size, cuda_graphs=rollout.cuda_graphs, **values)
    if rollout.engine == "trtllm":
        from nemo_simplerl.rollout.trtllm.engine import TrtllmEngine

        return TrtllmEngine(str(folder), settings=rollout.trtllm, group=group, **values)
    if rollout.engine == "vllm":
        from nemo_simplerl.rollout.vllm.engine import VllmEngine

        return VllmEngine(str(folder), settings=rollout.vllm, group=group, **values)
    raise ValueError(f"rollout.engine={rollout.engine}: build_engine makes no such engine.")


def _ranks_of_one_engine(rollout: RolloutConfig, mesh: Mesh) -> dist.ProcessGroup | None:
    """The group of this rank's engine, where it spans several ranks. Collective over the world."""
    if rollout.engine == "trtllm":
        return consecutive_ranks(rollout.trtllm.tensor_parallel_size, ranks=mesh.grid.ranks)
    if rollout.engine == "vllm":
        settings = rollout.vllm
        longest_call_s = max(settings.start_timeout_s, settings.timeout_s)
        return consecutive_ranks(settings.tensor_parallel_size, longest_call_s, ranks=mesh.grid.ranks)
    return None
