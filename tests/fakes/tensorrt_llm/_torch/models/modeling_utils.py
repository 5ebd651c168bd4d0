import torch
from transformers import AutoConfig, AutoModelForCausalLM


class DecoderModelForCausalLM(torch.nn.Module):
    """The Hugging Face model itself, loaded module by module like the real one's fused layers.

    As there, a partial load passes over names that no module has, and keeps the old values of what does not arrive.
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
                    parameter.data.copy_(weights[full_name])

    def post_load_weights(self) -> None:
        self.hf.tie_weights()
