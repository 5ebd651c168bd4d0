"""The double of Transformer Engine against what several releases' sources say."""

import copy

import pytest

from nemo_simplerl.dry.te import contract, install


@pytest.mark.parametrize("version", contract.recorded())
def test_the_double_keeps_the_interface_of_a_release(version):
    assert contract.differences(contract.recorded()[version]) == []


def test_the_version_that_the_double_gives_is_one_of_them():
    assert install.VERSION.rpartition(".")[0] in contract.recorded()


def changed(change):
    facts = copy.deepcopy(next(iter(contract.recorded().values())))
    change(facts)
    return contract.differences(facts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda facts: facts["signatures"].pop("Linear.forward"), "there is no Linear.forward"),
        (
            lambda facts: facts["signatures"]["Linear.__init__"].append(["tile", None]),
            "Linear.__init__: demands tile, which the double does not",
        ),
        (
            lambda facts: facts["signatures"]["RMSNorm.__init__"].pop(),
            "RMSNorm.__init__: no parameter hidden_size any more",
        ),
        (
            lambda facts: facts["signatures"]["FusedAdam.__init__"].reverse(),
            "FusedAdam.__init__: the parameters come in another order",
        ),
        (
            lambda facts: facts["signatures"]["apply_rotary_pos_emb"][5].__setitem__(1, "True"),
            "apply_rotary_pos_emb: the default of fused is True, the double's False",
        ),
        (lambda facts: facts["names"]["pytorch.fp8"].clear(), "pytorch.fp8 has no fp8_autocast"),
        (
            lambda facts: facts["demands"]["pytorch/attention/rope.py"].clear(),
            "pytorch/attention/rope.py no longer says: cu_seqlens must not be None when tensor_format is 'thd'.",
        ),
    ],
)
def test_a_release_that_changes_what_the_double_stands_for_is_told(change, told):
    assert told in changed(change)


def test_sources_are_read_without_being_imported(tmp_path):
    folder = tmp_path / "pytorch" / "attention"
    folder.mkdir(parents=True)
    (folder / "rope.py").write_text("import absent\ndef apply_rotary_pos_emb(t, freqs, fused=True, *, cp_size): ...\n")
    facts = contract.facts_of(tmp_path)
    assert facts["signatures"] == {
        "apply_rotary_pos_emb": [["t", None], ["freqs", None], ["fused", "True"], ["cp_size", None]]
    }
    assert facts["names"]["pytorch.attention.rope"] == ["apply_rotary_pos_emb"]
