"""PhaseTimer on a clock that the test sets."""

import pytest

from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed


class Clock:
    """A clock that returns the next of the given times."""

    def __init__(self, *times):
        self.times = list(times)

    def __call__(self):
        return self.times.pop(0)


def test_a_phase_entered_twice_adds_up_and_a_drain_starts_anew():
    timer = PhaseTimer(Clock(0.0, 2.0, 10.0, 10.5, 20.0, 23.0, 30.0, 31.0))
    with timer("rollout"):
        pass
    with timer("reward"):
        pass
    with timer("rollout"):
        pass
    assert timer.drain() == {"time/rollout": 5.0, "time/reward": 0.5}
    with timer("rollout"):
        pass
    assert timer.drain() == {"time/rollout": 1.0}
    assert timer.drain() == {}


def test_a_phase_inside_another_counts_in_both():
    timer = PhaseTimer(Clock(0.0, 1.0, 4.0, 6.0))
    with timer("update"), timer("forward"):
        pass
    assert timer.drain() == {"time/forward": 3.0, "time/update": 6.0}


def test_a_phase_that_raises_is_counted_and_the_error_goes_on():
    timer = PhaseTimer(Clock(0.0, 7.0))
    with pytest.raises(RuntimeError, match="out of memory"), timer("update"):
        raise RuntimeError("out of memory")
    assert timer.drain() == {"time/update": 7.0}


def test_a_timed_method_bills_its_object_and_gives_its_answer():
    class Engine:
        def __init__(self):
            self.timer = PhaseTimer(Clock(1.0, 4.0))

        @timed("rollout")
        def generate(self, count, *, seed):
            return count + seed

    engine = Engine()
    assert engine.generate(2, seed=40) == 42
    assert engine.timer.drain() == {"time/rollout": 3.0}


def test_the_peak_of_device_memory_belongs_to_every_phase_that_was_open():
    gib = 2**30
    peaks = Clock(*((size * gib, (size + 2) * gib) for size in (9, 5, 3, 4, 7, 6)))
    timer = PhaseTimer(Clock(*range(6)), take_peaks=peaks)
    with timer("update"):  # 9 before it
        with timer("forward"):  # 5 before it, 3 in it
            pass
        pass  # 4 after it
    with timer("refit"):  # 7 before it
        pass
    found = timer.drain()
    memory = {name: value for name, value in found.items() if name.startswith("memory/")}
    assert memory == {
        "memory/update_gb": 5.0,
        "memory/update_reserved_gb": 7.0,
        "memory/forward_gb": 3.0,
        "memory/forward_reserved_gb": 5.0,
        "memory/refit_gb": 6.0,
        "memory/refit_reserved_gb": 8.0,
    }


def test_a_models_own_timer_adds_to_the_same_sums_and_announces_its_phases_elsewhere():
    run, model = [], []
    timer = PhaseTimer(Clock(0.0, 1.0, 2.0, 5.0, 6.0, 7.0), on_enter=run.append)
    own = timer.with_on_enter(model.append)
    with timer("rollout"):
        pass
    with own("values"):
        pass
    assert (run, model) == (["rollout"], ["values"])
    assert timer.drain() == {"time/rollout": 1.0, "time/values": 3.0}
    with own("values"):
        pass
    assert timer.drain() == {"time/values": 1.0}
