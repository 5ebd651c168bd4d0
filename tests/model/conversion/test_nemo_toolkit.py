"""nemo-toolkit's own connector opens what we write."""

import pytest

from nemo_simplerl.model.conversion import nemo_toolkit
from nemo_simplerl.model.conversion.convert import Target
from nemo_simplerl.model.conversion.verify import verify
from nemo_simplerl.model.formats.nemo_config import parse_yaml
from nemo_simplerl.model.source import open_source
from support.forms import converted, members, save_critic, save_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not nemo_toolkit.is_installed(), reason="nemo-toolkit is not installed (the extra 'nemo')"),
]


def test_nemo_sees_the_config_and_the_files_that_were_written(tmp_path):
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    archives = {
        "actor": converted(save_model(tmp_path / "hf"), tmp_path / "actor.nemo", "nemo"),
        "critic": converted(save_critic(tmp_path / "critic"), tmp_path / "critic.nemo", "nemo", critic=True),
    }
    for name, archive in archives.items():
        files = members(archive)
        assert nemo_toolkit.config_seen_by_nemo(archive) == parse_yaml(files["model_config.yaml"], "")
        folder = tmp_path / f"{name}-unpacked"
        folder.mkdir()
        SaveRestoreConnector._unpack_nemo_file(path2file=str(archive), out_folder=str(folder))
        unpacked = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert unpacked == files


def test_verify_asks_nemo(tmp_path, monkeypatch):
    original = save_model(tmp_path / "hf")
    archive = converted(original, tmp_path / "m.nemo", "nemo")
    lines: list[str] = []
    assert verify(open_source(original), Target("nemo", archive), lines.append) == []
    assert "verify: NeMo's SaveRestoreConnector opens it" in lines
    monkeypatch.setattr(nemo_toolkit, "config_seen_by_nemo", lambda path: {"num_layers": 3, "hidden_size": 64})
    assert verify(open_source(original), Target("nemo", archive), lines.append) == ["NeMo reads num_layers=3, not 4"]
