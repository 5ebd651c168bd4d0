"""The embedded engine against transformers' own generation, for what sets a family's attention apart."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine
from support.tiny import save_hf_model

GREEDY = SamplingParams(n=1, max_tokens=16, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
# The longest, and its response, lie beyond the 32 tokens from which llama3_rope is stretched.
PROMPTS = [[5, 9, 11], [(7 * i) % 131 for i in range(45)], [7], [100, 101, 102, 103]]


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("qwen3", True),
        ("qwen3", False),
        *((name, False) for name in ("llama3_rope", "mistral_window", "mistral_heads", "deepseek_math")),
    ],
)
def test_greedy_completions_and_logprobs_are_those_of_transformers(tmp_path, family, tied):
    folder = save_hf_model(tmp_path / "model", family, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    engine = HfEngine(folder, tokenizer=None, max_batch_size=8)
    engine.refit([list(load_file(folder / "model.safetensors").items())], 1)
    completions = engine.generate(PROMPTS, GREEDY, list(range(len(PROMPTS))))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = torch.tensor([prompt])
        expected = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert [*prompt, *completion.token_ids] == expected[0].tolist()
        with torch.no_grad():
            logprobs = model(expected).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found = torch.tensor(completion.logprobs)
        torch.testing.assert_close(found, logprobs[range(16), list(completion.token_ids)], atol=1e-4, rtol=0)
