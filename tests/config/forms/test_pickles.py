"""Pickles of checkpoints: what they hold is read, what they ask for is not done."""

import argparse
import enum
import io
import os
import pickle
import subprocess
import tracemalloc
from collections import OrderedDict, defaultdict
from pathlib import PosixPath

import numpy as np
import pytest
import torch

from nemo_simplerl.config.forms.pickles import fields_of_pickle, fields_of_torch_file


class AttnBackend(enum.Enum):
    auto = 5


AttnBackend.__module__ = "megatron.core.transformer.enums"  # as a checkpoint names it


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_the_values_of_a_namespace_are_read_whatever_else_it_holds():
    args = argparse.Namespace(
        num_layers=4,
        rotary_base=10000,
        name="x",
        params_dtype=torch.bfloat16,
        path=PosixPath("/x"),
        rng=np.arange(3),
        tensor=torch.ones(2),
        odd={(1, 2): "a", "b": {1, 2}},
        ordered=OrderedDict(a=1),
        by_default=defaultdict(list, b=2),
        layers=[1, 2],
        none=None,
    )
    state = fields_of_torch_file(saved({"args": args, "iteration": 7}), "common.pt")
    assert state["iteration"] == 7
    found = state["args"].state
    assert (found["num_layers"], found["rotary_base"], found["name"], found["none"]) == (4, 10000, "x", None)
    assert (found["layers"], found["ordered"], found["by_default"]) == ([1, 2], {"a": 1}, {"b": 2})
    assert found["odd"].keys() == {"b"}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch canary"),
        (eval, "__import__('os').system('touch canary')"),
        (exec, "open('canary', 'w')"),
        (subprocess.Popen, ["touch", "canary"]),
        (open, "canary", "w"),
        (__import__, "os"),
    ],
)
def test_a_pickle_that_asks_for_code_is_refused_by_name_and_does_nothing(tmp_path, monkeypatch, protocol, call):
    monkeypatch.chdir(tmp_path)
    hostile = Calls(*call)
    name = call[0].__name__
    for value in (hostile, {"args": argparse.Namespace(num_layers=hostile)}, [[{"a": (hostile,)}]]):
        with pytest.raises(ValueError, match=rf"x asks for \w+\.{name} when it is loaded, .* refused"):
            fields_of_pickle(pickle.dumps(value, protocol), "x")
    with pytest.raises(ValueError, match="asks for"):
        fields_of_torch_file(saved({"args": hostile}), "x")
    assert not (tmp_path / "canary").exists()


def test_names_of_known_packages_are_not_called_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function, argument in ((torch.save, (1, "canary")), (np.save, ("canary.npy", [1]))):
        found = fields_of_pickle(pickle.dumps({"a": Calls(function, *argument), "b": 1}), "x")
        assert found["b"] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04", saved({"a": 1})[:200], b"PK\5\6" + bytes(18)])
def test_a_damaged_file_is_told_in_one_line(content):
    for read in (fields_of_pickle, fields_of_torch_file):
        with pytest.raises(ValueError, match="^x is (damaged|no complete torch.save file) "):
            read(content, "x")


def test_a_pickle_of_a_few_bytes_cannot_fill_the_memory():
    tower = b"".join(b"\x86" for _ in range(200_000))  # pairs of the two topmost objects
    with pytest.raises(ValueError, match="damaged"):
        fields_of_pickle(b"\x80\x04" + b"K\1" + tower, "x")
    assert fields_of_pickle(pickle.dumps({"a": {1, 2}, "b": frozenset([3])}, 4), "x") == {"a": set(), "b": frozenset()}


LONG_LIST = b"(" + b"K\1" * 1000 + b"t\x94"  # a tuple that the pickle keeps


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x96" + (1 << 40).to_bytes(8, "little") + b".", "bytearray"),  # BYTEARRAY8
        (b"\x8b" + (300).to_bytes(4, "little") + bytes(300) + b".", "number"),  # LONG4
        (b"\x8e" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),  # BINBYTES8
        (b"\x8d" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),  # BINUNICODE8
        (b"\x95" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),  # FRAME
        (LONG_LIST + b"0ctorch\nSize\nh\0\x85R.", "1000 dimensions"),
        (LONG_LIST + b"0ctorch\nSize\nh\0R.", "1000 arguments"),
        (b"(ctorch\nx\no.", "an object"),  # OBJ
        (LONG_LIST + b"0ctorch\nx\nh\0\x81.", "1000 arguments"),  # NEWOBJ
        (LONG_LIST + b"0ctorch\nx\nh\0}\x92.", "1000 arguments"),  # NEWOBJ_EX
    ],
)
def test_a_few_bytes_of_a_pickle_reserve_or_copy_no_more_than_the_file_has(content, why):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why):
            fields_of_pickle(b"\x80\5" + content, "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_shape_of_a_tensor_is_read():
    assert fields_of_pickle(pickle.dumps({"a": torch.Size([2, 3])}), "x") == {"a": (2, 3)}
