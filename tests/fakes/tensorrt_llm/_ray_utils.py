import functools
from contextlib import contextmanager

import ray


@contextmanager
def unwrap_ray_errors():
    try:
        yield
    except ray.exceptions.RayTaskError as e:
        raise e.as_instanceof_cause() from e


def control_action_decorator(func):
    """The method runs while no request does."""

    @functools.wraps(func)
    def wrapper(self, *args, **kwargs):
        with self.engine.control_action():
            return func(self, *args, **kwargs)

    return wrapper
