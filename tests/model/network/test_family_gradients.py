"""Gradients of the tensor-parallel model against those that Hugging Face's model gets from autograd."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from nemo_simplerl.trainer.learners.learner import Learner
from support.forms import exported
from support.ranks import run_ranks
from support.tiny import OPTIM, layout, save_hf_model

LENGTH = 41
TOKENS_BS = torch.randint(0, 131, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def _gradients(folders: list[str], sequence_parallel: bool) -> list[dict[str, torch.Tensor]]:
    """Gradients of half the sum of squared logits, by Hugging Face name, for each folder."""
    mesh = build_mesh(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    answers = []
    for folder in folders:
        source = open_source(folder)
        hf = source.hf
        plan = layout(2, sequence_parallel=sequence_parallel)
        gpt = build_gpt_model(hf, plan, mesh, dtype=torch.float32, transformer_engine=False)
        load_weights(gpt, source, mesh)
        learner = Learner(gpt, replace(OPTIM, clip_grad=0.0), mesh, total_updates=1, use_distributed_optimizer=False)
        learner.update(
            [TokenBatch(TOKENS_BS)],
            # Each rank squares its share of the vocabulary; sequence parallelism pads the length.
            lambda hidden_SBH, _, gpt=gpt: (head.output(gpt, hidden_SBH)[:LENGTH].square().sum() / 2, {}),
        )
        with torch.no_grad():
            for param in gpt.parameters():
                param.copy_(param.main_grad)
        answers.append(exported(gpt, hf, mesh))
    return answers


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_every_gradient_is_that_of_hugging_face(tmp_path, sequence_parallel):
    families = {"qwen2": True, "qwen3": False, "llama3_rope": False}
    folders = [str(save_hf_model(tmp_path / family, family, tied=tied)) for family, tied in families.items()]
    per_rank = run_ranks(_gradients, 2, folders, sequence_parallel)
    for index, folder in enumerate(folders):
        model = AutoModelForCausalLM.from_pretrained(folder)
        (model(TOKENS_BS).logits.square().sum() / 2).backward()
        expected = {name: param.grad for name, param in model.named_parameters()}
        for answers in per_rank:
            assert answers[index].keys() == expected.keys()
            for name, gradient in expected.items():
                scale = gradient.abs().max()
                torch.testing.assert_close(answers[index][name] / scale, gradient / scale, atol=1e-4, rtol=0, msg=name)
