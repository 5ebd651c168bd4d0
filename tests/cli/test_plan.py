"""The plan command: exit statuses, one JSON object, and no torch."""

import json
import subprocess
import sys

import pytest

from nemo_simplerl.cli.plan import run
from nemo_simplerl.dry.shim import Unavailable
from nemo_simplerl.plan.known import known_configs

RECIPE = ["simplerl_zero_qwen2.5_math_7b", "--shape", "Qwen2.5-Math-7B"]


@pytest.fixture
def data(tmp_path) -> str:
    file = tmp_path / "train.json"
    file.write_text("[]")
    return f"data.train_path={file}"


def test_a_run_that_can_be_exits_with_0(data, capsys):
    assert run([*RECIPE, data]) == 0
    printed = capsys.readouterr().out
    assert "1 x 8 h100-80g" in printed and printed.endswith("Can run.\n")


def test_an_experiment_may_be_named_as_training_names_it(data, capsys):
    assert run(["experiment=" + RECIPE[0], data, *RECIPE[1:]]) == 0
    by_override = capsys.readouterr().out
    assert run([*RECIPE, data]) == 0
    assert capsys.readouterr().out == by_override


def test_a_run_that_cannot_be_exits_with_1_and_lists_why(data, capsys):
    assert run([*RECIPE, data, "actor.tensor_model_parallel_size=8", "actor.global_batch_size=100"]) == 1
    printed = capsys.readouterr().out
    assert "Cannot run, 2 to mend" in printed
    assert printed.count("\n  - ") == 2


def test_json_is_one_object(data, capsys):
    asked = ["rollout.engine=trtllm", "actor.offload_adam_states=false"]
    assert run([*RECIPE, "--json", "--suggest", data, *asked]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is False and found["problems"]
    assert found["suggestions"] == sorted(found["suggestions"], key=lambda one: one["cost"])
    assert found["first_change"].startswith("actor.offload_adam_states=true")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [*RECIPE, "--gpu", "abacus"],
        [*RECIPE, "--nodes", "0"],
        [*RECIPE, "--fast"],
        [*RECIPE, "--files"],
        [RECIPE[0], "--shape", "GPT-2"],
    ],
)
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        run(argv)
    assert ended.value.code == 2


MISTAKES = ["actor.tensor_model_parallel_size=3", "rollout.max_response_tokens=9000", "actor.global_batch_size=130"]


def test_a_well_known_model_is_planned_without_its_folder_and_says_whose_sizes_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIMPLERL_MODEL_DIR", raising=False)
    assert run([RECIPE[0]]) == 0
    printed = capsys.readouterr().out
    assert "sizes are those published for Qwen2.5-Math-7B" in printed and "GiB on the fullest GPU" in printed
    assert run([RECIPE[0], *MISTAKES]) == 1
    printed = capsys.readouterr().out
    assert all(mistake.split("=")[0] in printed for mistake in MISTAKES), "all are named at once"


def test_a_run_about_to_be_queued_needs_its_files_on_this_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIMPLERL_MODEL_DIR", raising=False)
    assert run([RECIPE[0], "--files"]) == 1
    printed = capsys.readouterr().out
    assert "holds no config.json" in printed and "data.train_path" in printed


def test_where_a_folder_is_there_its_sizes_are_taken_and_the_plan_says_so(data, tmp_path, capsys):
    folder = tmp_path / "Qwen2.5-Math-7B"
    folder.mkdir()
    hf = known_configs()["Qwen/Qwen2.5-0.5B"] | {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(hf))
    asked = [RECIPE[0], data, f"model.path={folder}"]
    assert run(asked) == 0
    printed = capsys.readouterr().out
    assert f"sizes of {folder}\n0.49 B parameters" in printed
    assert run([*asked, "--shape", "Qwen/Qwen2.5-Math-7B"]) == 0  # its name on the Hub will do
    assert "sizes of --shape" in capsys.readouterr().out


def test_a_model_of_no_known_name_needs_its_folder(data, capsys):
    assert run([RECIPE[0], data, "model.path=models/mine"]) == 1
    assert "models/mine" in capsys.readouterr().out


def test_the_quickstart_can_be_planned_for_a_laptop(capsys):
    assert run(["quickstart", "--gpu", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 1 cpu" in printed and "sizes of model.create" in printed
    assert "no time is estimated: how fast these CPUs are is not known" in printed


def test_an_execution_is_told_rank_by_rank_beside_the_output(data, monkeypatch, capsys):
    def execute(overrides, layout, *, full, tell):
        tell("executed 1 of 2: rank 0")
        raise Unavailable("this is a test")

    monkeypatch.setattr("nemo_simplerl.cli.plan.execute", execute)
    assert run([*RECIPE, data, "--execute", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["not_executed"] == "this is a test"
    assert printed.err.splitlines()[1:] == ["executed 1 of 2: rank 0"]


def test_planning_loads_no_torch(data):
    code = (
        "import sys; from nemo_simplerl.cli.main import main; main(sys.argv[1:]); "
        "print({'torch', 'transformers', 'megatron'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *RECIPE, data, "--suggest"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
