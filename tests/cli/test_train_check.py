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
