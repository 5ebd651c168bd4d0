"""`python -m nemo_simplerl COMMAND` is `simplerl COMMAND`."""

import sys

from nemo_simplerl.python_child import standard_library_first

sys.path[:] = standard_library_first(sys.path)  # before anything is imported that a file of the user's could stand for

from nemo_simplerl.cli.main import main  # noqa: E402

if __name__ == "__main__":  # worker processes that are spawned import this module again
    raise SystemExit(main())
