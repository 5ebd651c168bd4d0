"""A check of a conversion: every tensor is compared, then the outputs of both models on a fixed batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_simplerl.config.families import for_transformers
from nemo_simplerl.config.schema import ActorConfig
from nemo_simplerl.model.conversion import nemo_toolkit
from nemo_simplerl.model.conversion.convert import Target
from nemo_simplerl.model.network import head, pipeline
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh, build_mesh, destroy_mesh

# Both models compute in float32; two implementations of the same layers differ by rounding alone.
TOLERANCE = 1e-4
# Where another dtype was asked for: about ten roundings of bfloat16's eight bits.
_CAST_TOLERANCE = 0.05
_BATCH, _LENGTH = 2, 32


def verify(source: Source, target: Target, report: Callable[[str], None]) -> list[str]:
    """The differences between the source and what was written from it; empty where there are none.

    report: takes a line for the user about each finished check.
    Both models are built in float32 on the CPU, one after the other.
    """
    result = open_source(target.path, target.kind, critic=source.is_critic)
    problems = different_tensors(source, result, target.dtype)
    report(f"verify: {len(source.specs) - len(problems)} of {len(source.specs)} tensors are equal")
    if target.kind == "nemo":
        problems += _problems_of_nemo(result, report)
    if problems:
        return problems
    before, after = outputs(source), outputs(result)
    difference = (before - after).abs().max().item()
    scale = max(1.0, before.abs().max().item())
    tolerance = TOLERANCE if target.dtype is None else _CAST_TOLERANCE
    what = "values" if source.is_critic else "logits"
    report(f"verify: {what} on {_BATCH} x {_LENGTH} tokens differ by {difference:.2g} at most")
    return [f"outputs differ by {difference:.3g}, more than {tolerance:g}"] if difference > tolerance * scale else []


def different_tensors(source: Source, result: Source, dtype: torch.dtype | None) -> list[str]:
    """The parameters of `result` that are missing or not bit for bit those of the source, cast to `dtype` if given."""
    missing = [f"{name} is missing" for name in source.specs if name not in result.specs]
    shared = [name for name in source.specs if name in result.specs]
    return missing + [name for name in shared if not _equal(source.read(name), result.read(name), dtype)]


def _equal(expected: Tensor, found: Tensor, dtype: torch.dtype | None) -> bool:
    expected = expected.to(dtype or expected.dtype)
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return False
    return torch.equal(expected.reshape(-1).view(torch.uint8), found.reshape(-1).view(torch.uint8))


def outputs(source: Source) -> Tensor:
    """float32 logits [B, S, V], or values [B, S], of a fixed batch. A Hugging Face folder is run by transformers, the
    other forms by Megatron."""
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(source.hf["vocab_size"], (_BATCH, _LENGTH), generator=generator)
    run = _run_transformers if source.kind == "hf" else _run_megatron
    return run(source, tokens_BS)


@torch.no_grad()
def _run_transformers(source: Source, tokens_BS: Tensor) -> Tensor:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    # Our reading of config.json: the installed version may misread what another one wrote.
    config = CONFIG_MAPPING[source.hf["model_type"]].from_dict(for_transformers(source.hf))
    kind = AutoModelForSequenceClassification if source.is_critic else AutoModelForCausalLM
    model = kind.from_pretrained(source.path, config=config, dtype=torch.float32).eval()
    if not source.is_critic:
        return model(tokens_BS).logits
    return model.score(model.model(tokens_BS).last_hidden_state)[..., 0]


def _run_megatron(source: Source, tokens_BS: Tensor) -> Tensor:
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=600
    )
    try:
        gpt = _one_rank_model(source, mesh)
        (output_SBX,) = pipeline.forward_only(
            gpt, [pipeline.TokenBatch(tokens_BS)], lambda hidden_SBH, _: head.output(gpt, hidden_SBH).float(), mesh
        )
    finally:
        destroy_mesh()
    output_BSX = output_SBX.transpose(0, 1)
    return output_BSX[..., 0] if source.is_critic else output_BSX[..., : source.hf["vocab_size"]]


def _one_rank_model(source: Source, mesh: Mesh):
    layout = ActorConfig(
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        context_parallel_size=1,
        sequence_parallel=False,
        use_distributed_optimizer=False,
        overlap_grad_reduce=False,
        offload_adam_states=False,
        recompute_granularity=None,
        micro_batch_size=1,
        forward_micro_batch_size=1,
        micro_batch_tokens=None,
        forward_micro_batch_tokens=None,
        global_batch_size=1,
        optim=None,  # type: ignore[arg-type]  # nothing is trained
    )
    gpt = build_gpt_model(
        source.hf,
        layout,
        mesh,
        dtype=torch.float32,
        transformer_engine=False,
        critic_seed=0 if source.is_critic else None,
    )
    load_weights(gpt, source, mesh)
    return gpt


def _problems_of_nemo(result: Source, report: Callable[[str], None]) -> list[str]:
    """What nemo-toolkit finds wrong with the archive; nothing where it is not installed."""
    if not nemo_toolkit.is_installed():
        report("verify: nemo-toolkit is not installed, so NeMo's own connector was not asked")
        return []
    try:
        config = nemo_toolkit.config_seen_by_nemo(result.path)
    except ImportError as error:
        report(f"verify: nemo-toolkit does not import ({error}), so NeMo's own connector was not asked")
        return []
    except Exception as error:  # whatever NeMo raises for an archive it cannot open
        return [f"NeMo cannot open it: {error!r}"]
    expected = {"num_layers": result.hf["num_hidden_layers"], "hidden_size": result.hf["hidden_size"]}
    report("verify: NeMo's SaveRestoreConnector opens it")
    wrong = {key: value for key, value in expected.items() if config.get(key) != value}
    return [f"NeMo reads {key}={config.get(key)}, not {value}" for key, value in wrong.items()]
