"""The tensors that a model needs, read from its config.json, to check a refit tensor by tensor.

For engines whose own loader skips unknown names and keeps the old weights where none arrive.
"""

from pathlib import Path

import torch

from nemo_simplerl.rollout.base import Bucket
from nemo_simplerl.rollout.hf_model import empty_model, read_config


class ExpectedWeights:
    """Hugging Face names and shapes of a model's parameters. Tied names are one parameter."""

    def __init__(self, model_path: str | Path):
        config = read_config(model_path)
        model = empty_model(config, torch.device("meta"))
        self.vocab_size: int = config.vocab_size
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.owner: dict[str, str] = {}  # the first name of the parameter that a name stands for
        first_name: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.shapes[name] = tuple(parameter.shape)
            self.owner[name] = first_name.setdefault(id(parameter), name)


class Arrivals:
    """The tensors that have arrived in one refit, and what is wrong with them."""

    def __init__(self, expected: ExpectedWeights):
        self._expected = expected
        self._filled: dict[str, str] = {}  # parameter -> the name it came under
        self.problems: list[str] = []

    def take(self, bucket: Bucket) -> None:
        """Check the bucket's names and shapes; `problems` grows by what does not fit."""
        for name, tensor in bucket:
            shape, owner = self._expected.shapes.get(name), self._expected.owner.get(name)
            if shape is None or owner is None:
                self.problems.append(f"unknown {name}")
                continue
            if shape != tuple(tensor.shape):
                self.problems.append(f"{name} is {tuple(tensor.shape)}, the model's is {shape}")
            if owner in self._filled:
                before = self._filled[owner]
                self.problems.append(f"duplicate {name}" + ("" if before == name else f", which is tied to {before}"))
            self._filled[owner] = name

    def finish(self) -> None:
        """Raises ValueError naming all that did not fit and all that is missing."""
        missing = sorted(set(self._expected.owner.values()) - self._filled.keys())
        problems = self.problems + ([f"missing {', '.join(missing)}"] if missing else [])
        if problems:
            raise ValueError(
                f"the weights do not fit the engine's model: {'; '.join(problems)}. "
                "The trained model and the engine must be built from the same config.json."
            )
