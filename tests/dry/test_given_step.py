"""The step whose completions are given stands for one that was sampled."""

import inspect

from nemo_simplerl.dry.materials import GivenStep
from nemo_simplerl.trainer.saving.step_state import StepState


def test_it_is_called_as_a_step_is():
    own = {name: value for name, value in vars(GivenStep).items() if inspect.isfunction(value) and name != "__init__"}
    assert own
    for name, function in own.items():
        assert list(inspect.signature(function).parameters) == list(
            inspect.signature(getattr(StepState, name)).parameters
        )
