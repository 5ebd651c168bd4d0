"""`simplerl convert` as a user types it: what it writes, and that it writes all or nothing."""

import json
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_simplerl.cli.convert import _KINDS, run
from nemo_simplerl.model.conversion import convert as conversion
from nemo_simplerl.model.formats.torch_dist import GlobalTensor
from nemo_simplerl.model.source import READERS
from support.forms import converted, repacked, same_bits, tensors_of

ROOT = Path(__file__).parents[2]


def test_a_form_that_can_be_opened_has_its_name_on_the_command_line():
    assert set(READERS) == set(_KINDS)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("hf", "nemo"),
        ("nemo", "checkpoint"),
        ("checkpoint", "hf"),
        ("hf", "nemo2"),
        ("nemo", "bridge"),
        ("hf", "megatron"),
    ],
)
def test_one_form_becomes_another_in_one_command(made, tmp_path, capsys, source, target):
    assert run(["--from", source, "--to", target, str(made[source]), str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "31 parameters, 0.00 GB" in told.out and told.err == ""
    back = tmp_path / "out" if target == "hf" else converted(tmp_path / "out", tmp_path / "back")
    assert same_bits(tensors_of(back), tensors_of(made["hf"]))


def test_a_folder_is_cast_or_cut_anew_in_place_of_a_conversion(made, tmp_path):
    arguments = ["--from", "hf", "--to", "hf", "--dtype", "bf16", "--shard-gb", "0.0001"]
    assert run([*arguments, str(made["hf"]), str(tmp_path / "out")]) == 0
    expected = {name: tensor.bfloat16() for name, tensor in tensors_of(made["hf"]).items()}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert same_bits(tensors_of(tmp_path / "out"), expected)


def test_the_tokenizer_can_be_given_and_its_absence_is_told(made, tmp_path, capsys):
    def without(files: dict[str, bytes]) -> None:
        for name in [name for name in files if name.startswith("hf/")]:
            del files[name]

    bare = repacked(made["nemo"], tmp_path / "bare.nemo", without)
    arguments = ["--from", "nemo", "--to", "hf", str(bare)]
    assert run([*arguments, str(tmp_path / "out")]) == 0
    assert f"no tokenizer: {bare} holds no tokenizer files. It names '{made['hf']}'" in capsys.readouterr().out
    assert run([*arguments, str(tmp_path / "with"), "--tokenizer", str(made["hf"])]) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    assert (tmp_path / "with/tokenizer.json").read_bytes() == (made["hf"] / "tokenizer.json").read_bytes()


def test_verify_compares_tensors_and_outputs(made, tmp_path, capsys):
    for name, extra in (("hf", []), ("critic", ["--critic"])):
        arguments = ["--from", "hf", "--to", "checkpoint", "--verify", *extra]
        assert run([*arguments, str(made[name]), str(tmp_path / name)]) == 0
        told = capsys.readouterr().out
        assert "tensors are equal" in told
        assert ("values" if extra else "logits") + " on 2 x 32 tokens differ by" in told


def test_verify_names_the_tensor_in_which_one_byte_differs(made, tmp_path, capsys, monkeypatch):
    whole = conversion.convert

    def damaged(source, target, progress):
        whole(source, target, progress)
        file = target.path / "model.safetensors"
        content = bytearray(file.read_bytes())
        start = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:start])
        content[start + header["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0]] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(conversion, "convert", damaged)
    arguments = ["--from", "nemo", "--to", "hf", "--verify"]
    assert run([*arguments, str(made["nemo"]), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "DIFFERENT: decoder.layers.2.mlp.linear_fc1.weight\n"


def test_help_and_wrong_flags_answer_without_torch():
    code = "import sys; from nemo_simplerl.cli.main import main\ntry: main(sys.argv[1:])\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    for arguments, status in ((["--help"], 0), (["--from", "odd"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, "convert", *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.splitlines()[-1] == f"{status} False"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_on_the_way_leaves_nothing(made, tmp_path, monkeypatch, error):
    whole, calls = GlobalTensor.read, []

    def failing(self, row=None):
        calls.append(row)
        if len(calls) > 10:
            raise error
        return whole(self, row)

    monkeypatch.setattr(GlobalTensor, "read", failing)
    for kind in ("hf", "nemo", "checkpoint"):
        calls.clear()
        with pytest.raises(error):
            run(["--from", "nemo", "--to", kind, "--dtype", "bf16", str(made["nemo"]), str(tmp_path / "out")])
        assert len(calls) > 10 and list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from nemo_simplerl.cli.convert import _KINDS, run
from nemo_simplerl.model.formats.torch_dist import RankFile
whole = RankFile.add
def slow(self, key, *rest):
    if "final_layernorm" in key:
        print("waiting", flush=True)
        time.sleep(60)
    whole(self, key, *rest)
RankFile.add = slow
run(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nemo", "checkpoint"])
def test_a_killed_conversion_leaves_nothing_under_its_name_and_can_be_repeated(made, tmp_path, kind):
    arguments = ["--from", "hf", "--to", kind, str(made["hf"]), str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert run(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same_bits(tensors_of(converted(tmp_path / "out", tmp_path / "back")), tensors_of(made["hf"]))
