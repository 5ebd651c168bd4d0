import torch
from safetensors.torch import load_file

from tensorrt_llm._torch.models.modeling_utils import DecoderModelForCausalLM


class ModelLoader:
    def __init__(self, llm_args):
        self.llm_args = llm_args

    def load(self) -> DecoderModelForCausalLM:
        args = self.llm_args
        model = DecoderModelForCausalLM(args.model, getattr(torch, args.dtype))
        if args.load_format == "dummy":
            for parameter in model.parameters():
                parameter.data.uniform_(-1e-3, 1e-3)
        else:
            model.load_weights(load_file(f"{args.model}/model.safetensors"), allow_partial_loading=True)
        return model

    def reload(self, model: DecoderModelForCausalLM, weights: dict, allow_partial_loading: bool = False):
        model.load_weights(weights, allow_partial_loading=allow_partial_loading)
