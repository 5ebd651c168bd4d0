"""Starts modules of this package in Python processes of their own, whatever files lie in the working directory.

`python -m MODULE` and `python -c CODE` look for every module in the working directory first: a file there with the name
of a standard module, as http.py, would be taken for it. `module_command` starts this file instead, by its path, and
this file runs the module. Imports nothing of the package.
"""

import os
import sys
from collections.abc import Sequence


def module_command(module: str, python: str = sys.executable) -> tuple[str, ...]:
    """The command that runs a module of this very copy of the package. Its arguments are to follow."""
    return (python, os.path.abspath(__file__), module)


def standard_library_first(path: Sequence[str]) -> list[str]:
    """The module search path with the working directory moved behind the standard library, where it stood before it.

    PYTHONPATH can hold that directory too; an empty entry means it.
    """
    library = os.path.dirname(os.__file__)
    of_library = {library, os.path.join(library, "lib-dynload")}
    last = max((index for index, entry in enumerate(path) if entry in of_library), default=-1)
    here = [entry for entry in path[: last + 1] if not entry or _same_folder(entry, os.curdir)]
    before = [entry for entry in path[: last + 1] if entry not in here]
    return [*before, *here, *path[last + 1 :]]


def _same_folder(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is gone
        return False


def _run(arguments: list[str]) -> None:
    """Run the module that the first argument names as the program, with the others as its own."""
    package = os.path.dirname(os.path.abspath(__file__))
    # The folder of the program that was started stands first: here the package's own, whose modules have short names.
    sys.path[:] = standard_library_first([entry for entry in sys.path if not _same_folder(entry or ".", package)])
    from importlib.util import module_from_spec, spec_from_file_location

    # Another copy of the package may be installed. The process that started this one speaks to this copy.
    name = os.path.basename(package)
    spec = spec_from_file_location(name, os.path.join(package, "__init__.py"))
    assert spec is not None and spec.loader is not None, "the package has a file of its own"
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    import runpy

    sys.argv[:] = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[1:])
