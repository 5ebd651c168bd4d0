"""Messages over two pipes arrive whole, and silence, a full pipe and an end are told apart."""

import os
import threading
import time

import pytest

from nemo_simplerl.rollout.vllm.wire import Channel


@pytest.fixture
def ends():
    (here_reads, there_writes), (there_reads, here_writes) = os.pipe(), os.pipe()
    here, there = Channel(here_reads, here_writes), Channel(there_reads, there_writes)
    yield here, there
    here.close()
    there.close()


def test_a_message_larger_than_a_pipe_arrives_with_every_bit(ends):
    here, there = ends
    message = ("generate", [0.1 + i / 3 for i in range(50_000)], {"seed": 2**64 - 1, "stop": None})
    sender = threading.Thread(target=here.send, args=(message, 10))
    sender.start()
    assert there.receive(10) == message
    sender.join()


def test_silence_and_a_full_pipe_end_in_a_timeout(ends):
    here, _ = ends
    with pytest.raises(TimeoutError):
        here.receive(0.05)
    with pytest.raises(TimeoutError):
        here.send(bytes(2**20), 0.05)


def test_the_end_of_the_other_side_is_told_at_once(ends):
    here, there = ends
    there.close()
    for act in (lambda: here.receive(10), lambda: here.send(1, 10)):
        begun = time.monotonic()
        with pytest.raises(EOFError):
            act()
        assert time.monotonic() < begun + 1
    here.close()
    with pytest.raises(EOFError):
        here.receive(10)


def test_a_forked_process_does_not_keep_the_pipes_open(ends):
    here, there = ends
    child = os.fork()
    if not child:
        time.sleep(5)
        os._exit(0)
    here.close()
    begun = time.monotonic()
    with pytest.raises(EOFError):
        there.receive(10)
    assert time.monotonic() < begun + 2
    os.kill(child, 9)
    os.waitpid(child, 0)
