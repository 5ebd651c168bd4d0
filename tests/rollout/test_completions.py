import torch

from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import decode_completions, encode_completions


def test_encoded_completions_come_back_exactly():
    floats = torch.tensor([-0.1, -7.3, -1e-30]).tolist()
    completions = [
        Completion((5, 2**31 - 1), tuple(floats[:2]), "na\u00efve", "stop", 3, 2**63),
        Completion((), (), "", "length", 4, -1),
        Completion((0,), (floats[2],), "x", "length", 3, 7),
    ]
    assert decode_completions(encode_completions(completions)) == completions
    assert decode_completions(encode_completions([])) == []
