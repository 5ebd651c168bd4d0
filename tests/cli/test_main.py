"""The `simplerl` command: which subcommand runs, the message for an unknown one, and that nothing heavy loads."""

import subprocess
import sys
import types

import pytest

from nemo_simplerl.cli import main as front


@pytest.fixture
def greet(monkeypatch):
    """A command `greet`, and the arguments that it was called with."""
    calls = []
    module = types.ModuleType("tests_greet")
    module.run = lambda argv: calls.append(argv) or 7
    monkeypatch.setitem(sys.modules, "tests_greet", module)
    monkeypatch.setitem(front.COMMANDS, "greet", ("tests_greet", "says hello"))
    return types.SimpleNamespace(calls=calls, module=module)


def test_a_command_gets_the_rest_of_the_line_and_its_status_is_the_answer(greet):
    assert front.main(["greet", "experiment=quickstart", "--help"]) == 7
    assert greet.calls == [["experiment=quickstart", "--help"]]


def test_without_arguments_the_shells_are_read(greet, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["simplerl", "greet", "x=1"])
    assert front.main() == 7
    assert greet.calls == [["x=1"]]


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_command_with_what_it_does(argv, capsys):
    assert front.main(argv) == 0
    printed = capsys.readouterr().out
    for name, (_, text) in front.COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in printed.splitlines())


def test_a_typo_is_told_the_nearest_command_and_what_is_far_from_all_the_whole_list(capsys):
    assert front.main(["trian", "x=1"]) == 2
    assert capsys.readouterr().err == "simplerl: there is no command 'trian'; did you mean train?\n"
    assert front.main(["zzz"]) == 2
    assert "the commands are train, sft, " in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_no_traceback(greet, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    greet.module.run = interrupted
    assert front.main(["greet"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_listed_command_has_a_module_that_can_run_and_help_of_its_own(name, capsys):
    try:
        status = front.main([name, "--help"])
    except SystemExit as left:  # of argparse
        status = left.code
    assert not status
    assert capsys.readouterr().out.startswith(f"usage: simplerl {name}")


def test_a_process_of_its_own_answers_as_the_front_door_does():
    done = subprocess.run([sys.executable, "-m", "nemo_simplerl", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: simplerl train")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["trian"]])
def test_what_the_front_door_answers_itself_loads_nothing_but_the_standard_library(argv):
    code = (
        "import sys; before = set(sys.modules); from nemo_simplerl.cli.main import main; main(sys.argv[1:]);"
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(roots - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['nemo_simplerl']"


def test_a_spawned_worker_that_imports_the_entry_module_runs_no_command():
    code = (
        "import runpy, sys; sys.argv = ['x', 'zzz'];runpy.run_module('nemo_simplerl.__main__', run_name='__mp_main__')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
