"""What a dry run builds roles from: a source and an engine without bytes, and a rollout that nobody sampled."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemo_simplerl.config.families import FAMILIES
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.dry.sample import Sample
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.safetensors_io import Spec
from nemo_simplerl.model.network.provider import DTYPES
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.plan.engines.base import is_in_trainer
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Bucket, Completion, RolloutEngine, SamplingParams
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import Response, SpreadCompletions
from nemo_simplerl.trainer.build import Materials
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.setup.engine import build_engine
from nemo_simplerl.trainer.shares import Share

_TOKEN, _LOGPROB = 1, -1.0


def hf_config(shape: ModelShape) -> dict:
    """A config.json of the shape; what decides neither sizes nor kernels is a family's usual value."""
    hf = {
        "model_type": shape.model_type,
        "architectures": [FAMILIES[shape.model_type].architecture],
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "intermediate_size": shape.ffn_hidden_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    own = {"head_dim": shape.head_dim} if shape.head_dim is not None else {}
    return hf | own | ({"sliding_window": shape.sliding_window} if shape.family.window else {})


def blank_source(hf: dict, dtype: torch.dtype) -> Source:
    """A model of this config whose tensors have sizes alone."""
    specs = {name: Spec(name, hf_map.param_shape(name, hf), dtype) for name in hf_map.model_params(hf)}

    def read(name: str) -> Tensor:
        return torch.empty(specs[name].shape, dtype=dtype)

    return Source("blank", Path("/dev/null"), hf, False, specs, {}, read, None)


class BlankEngine:
    """A RolloutEngine that takes weights and samples nothing. It holds `num_bytes` of the device from start to end, and
    with `is_apart`, as an engine in another process does, a copy of each bucket that it is sent."""

    batch_size = None
    generates = True
    sleeps_between_rollouts = False

    def __init__(self, num_bytes: int, device: torch.device, *, is_apart: bool):
        self.weight_version: int | None = None
        self._is_apart = is_apart
        self._weights = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        for bucket in buckets:
            copy = self._weights.new_empty(sum(tensor.nbytes for _, tensor in bucket) if self._is_apart else 0)
            del copy, bucket
        self.weight_version = version
        return {}

    def invalidate(self, reason: str) -> None:
        self.weight_version = None

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        raise AssertionError("a dry run's completions are given")

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class _Vocabulary:
    """What the hf engine asks of a tokenizer when it is built."""

    def __init__(self, size: int):
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        return {"": self._size - 1}


class GivenStep(StepState):
    """The state of a step whose completions and grades are given. Nothing of it is kept for a resumed run."""

    def __init__(self, sample: Sample):
        super().__init__()
        self._given = sample.response_tokens

    def completions(self, sample, count) -> SpreadCompletions:
        """As on the rank that sampled none of them: their lengths are all that is looked at."""
        lengths, nothing = np.array(self._given, dtype=np.int64), np.zeros(len(self._given), dtype=np.int64)
        stopped, holders = nothing == 0, nothing - 1
        self.sampled.completions = SpreadCompletions(
            lengths, stopped, nothing, nothing, holders, rank=0, held=Completions.of([])
        )
        return self.sampled.completions

    def share_out(self, completions: SpreadCompletions, shares: Mapping[str, Share]) -> None:
        """Nothing is sent: `responses` makes up what would arrive."""
        self._lengths, self.shares = completions.lengths, dict(shares)

    def responses(self, share: Share) -> list[Response]:
        return [
            Response(np.full(length, _TOKEN, np.int32), np.full(length, _LOGPROB, np.float32), "stop")
            for length in self._lengths[share.mine].tolist()
        ]

    def grades(self, grade, count) -> list[Grade]:
        return [Grade(("correct", "incorrect")[index % 2], "ok", 0.0) for index in range(len(self._given))]

    def column(self, name: str, role: str, batch: Batch, compute) -> Tensor:
        return compute(batch)


def prompts_of(sample: Sample) -> list[Prompt]:
    """A prompt of the longest kind for each sample."""
    problem = Problem(id="dry", question="", answer="", level=None, subject=None)
    return [Prompt(problem, "", (_TOKEN,) * sample.prompt_tokens)] * len(sample.response_tokens)


def materials(config: Config, shape: ModelShape, critic_shape: ModelShape | None, folder: Path) -> Materials:
    """Materials without bytes for models of these shapes; `folder`, an empty one, gets the policy's config.json.

    An engine in the trainer's process is the real one, which needs that file; of one in processes of its own, and where
    pipeline stages would have to hear of each other's weights, a BlankEngine stands in.
    """
    dtype, hf = DTYPES[config.model.precision], hf_config(shape)
    (folder / "config.json").write_text(json.dumps(hf))
    sources = [blank_source(hf, dtype)]
    if critic_shape is not None:
        sources.append(blank_source(hf_config(critic_shape), dtype))
    is_inside = is_in_trainer(config.rollout.engine)

    def build(mesh: Mesh) -> RolloutEngine:
        if is_inside and config.actor.pipeline_model_parallel_size == 1:
            return build_engine(config.rollout, config.model.precision, folder, mesh, _Vocabulary(shape.vocab_size))
        return BlankEngine(sources[0].num_bytes if is_inside else 0, mesh.device, is_apart=not is_inside)

    rollout = config.rollout
    sampling = SamplingParams(
        n=rollout.n_samples_per_prompt,
        max_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=(),
        stop_token_ids=(),
    )
    return Materials(
        hf=hf,
        sources=tuple(sources),
        initial_weights="",
        sampling=sampling,
        pad_id=0,
        eos_id=0,
        build_engine=build,
    )
