"""The comments of the schema: every key has one, for the person who sets it. And what is derived from its keys."""

import inspect
import re
from dataclasses import replace

from nemo_simplerl.config import schema
from nemo_simplerl.config.load import compose


def test_every_key_has_a_comment_that_says_what_it_means():
    source = inspect.getsource(schema)
    lines = source.splitlines()
    without = [
        match[1]
        for above, line in zip(lines, lines[1:], strict=False)
        if (match := re.fullmatch(r"    (\w+): (?!\w*Config$).*", line))
        and "  # " not in line
        and not above.lstrip().startswith("#")
    ]
    assert without == []


def test_the_kl_penalty_is_counted_in_one_place():
    in_reward = replace(compose(["experiment=quickstart"]).algo, kl_coef=0.25, kl_in="reward")
    in_loss = replace(in_reward, kl_in="loss")
    assert (in_reward.kl_coef_of_reward, in_reward.kl_coef_of_loss) == (0.25, 0.0)
    assert (in_loss.kl_coef_of_reward, in_loss.kl_coef_of_loss) == (0.0, 0.25)
