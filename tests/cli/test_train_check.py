"""What `simplerl train` refuses for its files of problems before torch loads."""

import json

from nemo_simplerl.cli.main import main as simplerl


def test_mixed_groups_of_as_many_problems_as_a_step_takes_are_refused(tmp_path, capsys):
    rows = [json.dumps({"question": f"{i} + 1", "answer": f"{i + 1}"}) for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    words = ["experiment=quickstart", f"data.train_path={tmp_path / 'train.jsonl'}", f"trainer.run_dir={tmp_path}/run"]
    sizes = [f"{role}.global_batch_size=16" for role in ("actor", "critic")]
    command = ["train", "--check", *words, *sizes, "data.rollout_batch_size=4"]
    assert simplerl([*command, "rollout.keep_groups=mixed"]) == 2
    assert "takes 4 prompts and there are 4, so rollout.keep_groups=mixed has no other" in capsys.readouterr().err
    assert simplerl(command) == 0


def test_where_roles_live_and_what_has_no_effect_there_is_told_by_a_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check = ["train", "experiment=quickstart", f"trainer.run_dir={tmp_path}/run", "--check"]
    apart = ["placement.engine=2-3", "rollout.engine=trtllm", "rollout.temperature=1.0"]
    assert simplerl([*check, *apart]) == 0
    told = capsys.readouterr().err
    assert "placement: actor on ranks 0-1 (node 0), critic on ranks 0-1 (node 0), engine on ranks 2-3 (node 1)" in told
    assert "note: rollout.trtllm.sleep=true has no effect where engines have ranks of their own" in told
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert simplerl(check) == 0 and capsys.readouterr().err == ""
    assert simplerl([*check, *apart]) == 2
    assert "placement.engine=2-3 goes beyond the ranks of the run, 0 to 1" in capsys.readouterr().err
