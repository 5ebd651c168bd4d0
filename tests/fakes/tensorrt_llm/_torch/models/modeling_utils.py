import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tensorrt_llm._torch import cuda_stream


class DecoderModelForCausalLM(torch.nn.Module):
    """The Hugging Face model itself, loaded module by module like the real one's fused layers.

    As there, a partial load passes over names that no module has, and keeps the old values of what does not arrive; and
    it queues copies that are not done when it returns.
    """

    def __init__(self, model_dir: str, dtype: torch.dtype):
        super().__init__()
        config = AutoConfig.from_pretrained(model_dir)
        self.hf = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def load_weights(self, weights: dict, weight_mapper=None, allow_partial_loading: bool = False):
        for module_name, module in self.hf.named_modules(remove_duplicate=False):
            for name, parameter in module.named_parameters(recurse=False):
                full_name = f"{module_name}.{name}"
                if not allow_partial_loading:
                    assert full_name in weights
                if full_name in weights:
                    copied = (parameter.data, weights[full_name])
                    cuda_stream.queue(lambda copied=copied: copied[0].copy_(copied[1]))

    def post_load_weights(self) -> None:
        self.hf.tie_weights()
