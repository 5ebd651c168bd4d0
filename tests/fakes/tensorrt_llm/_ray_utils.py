import functools


def control_action_decorator(func):
    """The method runs while no request does."""

    @functools.wraps(func)
    def wrapper(self, *args, **kwargs):
        with self.engine.control_action():
            return func(self, *args, **kwargs)

    return wrapper
