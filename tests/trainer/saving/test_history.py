"""A run directory without the checkpoints that it once had is not begun anew in silence."""

import json

import pytest

from nemo_simplerl.trainer.saving.history import check_history, remember_saved
from nemo_simplerl.trainer.saving.position import TrainingPosition as At


def _steps(run_dir, count):
    rows = [json.dumps({"step": step}) for step in range(count + 1)]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")


def test_a_new_run_and_one_that_goes_on_from_its_last_checkpoint_have_nothing_to_tell(tmp_path):
    assert check_history(tmp_path / "new", None) == []
    _steps(tmp_path, 0)
    assert check_history(tmp_path, None) == []
    remember_saved(tmp_path, At(3, 2))
    assert check_history(tmp_path, At(3, 2)) == []
    assert check_history(tmp_path, At(4)) == []  # killed before it was written down


def test_checkpoints_that_are_gone_are_missed(tmp_path):
    _steps(tmp_path, 5)
    (note,) = check_history(tmp_path, None)
    assert "metrics of 5 steps and no checkpoint: the run starts over from step 1" in note
    remember_saved(tmp_path, At(4))
    (note,) = check_history(tmp_path, At(2))
    assert "the checkpoint of step 4, which the run had saved, is gone or passed over; it goes on from step 2" in note
    with pytest.raises(ValueError, match=r"had saved step 4.*trainer.resume=false"):
        check_history(tmp_path, None)


def test_a_finished_run_of_an_older_version_is_not_started_over(tmp_path):
    _steps(tmp_path, 5)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"had saved its end"):
        check_history(tmp_path, None)
