"""CUDA_DEVICE_MAX_CONNECTIONS, where Megatron's communication is to overlap with computation."""

import pytest

from nemo_simplerl.parallel.mesh import queue_communication_first

NAME = "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.mark.parametrize(
    ("found", "capability", "left", "warns"),
    [
        ({}, (9, 0), {NAME: "1"}, False),
        ({NAME: "1"}, (8, 0), {NAME: "1"}, False),
        ({NAME: "8"}, (9, 0), {NAME: "8"}, True),
        ({}, (10, 0), {}, False),
        ({NAME: "1"}, (10, 0), {NAME: "1"}, False),
        ({NAME: "32"}, (12, 0), {NAME: "32"}, False),
    ],
)
def test_work_is_queued_in_order_before_blackwell_and_a_users_value_stays(found, capability, left, warns, caplog):
    environ = dict(found)
    seen = []

    def asked():
        seen.append(environ.get(NAME))  # asking may make a context, which reads the variable
        return capability

    queue_communication_first(environ, asked)
    assert environ == left and seen == [found.get(NAME, "1")]
    assert (f"{NAME}=8: with tensor parallelism Megatron wants 1" in caplog.text) is warns
