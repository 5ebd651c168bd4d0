"""Variables that switch off kinds of Transformer Engine's attention: told to Megatron in its own way, or refused."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from megatron.core.models.common.language_module.language_module import LanguageModule

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.machine import Machine, attention_chosen, check_machine
from nemo_simplerl.doctor.packages import attention_notes, outside_megatrons_own
from nemo_simplerl.model.network.provider import attention_backend

SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ((None, None, None), "auto"),
        (("1", "1", "1"), "auto"),
        (("0", None, None), "fused"),
        (("0", "1", "1"), "fused"),
        ((None, "0", None), "flash"),
        ((None, None, "0"), "auto"),
        (("0", "0", None), "unfused"),
        (("0", None, "0"), "fused"),
        (("0", "0", "0"), None),
    ],
)
def test_what_is_switched_off_is_told_to_megatron_which_then_accepts_the_environment(values, chosen, monkeypatch):
    environ = {name: value for name, value in zip(SWITCHES, values, strict=True) if value is not None}
    assert attention_chosen(environ) == chosen
    backend = attention_backend(environ)
    assert (backend.name, environ) == (chosen or "auto", {})

    # As Megatron's constructor does it, twice: actor and critic.
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    config = SimpleNamespace(attention_backend=backend, flash_attention_version=None)  # the latter of 0.19
    for _ in range(2):
        LanguageModule._set_attention_backend(SimpleNamespace(config=config))
        assert attention_backend(os.environ) == backend


def test_a_run_that_is_left_no_attention_is_refused_before_it_starts():
    config = compose(["experiment=quickstart"])
    machine = Machine(has_gpu=True, has_transformer_engine=True, attention=None)
    of_attention = [problem for problem in check_machine(config, machine) if "NVTE" in problem]
    assert of_attention == [
        "NVTE_FLASH_ATTN=0, NVTE_FUSED_ATTN=0, NVTE_UNFUSED_ATTN=0 leave Transformer Engine no attention. "
        "Unset one of them, or set model.transformer_engine=false."
    ]
    without = replace(config, model=replace(config.model, transformer_engine=False))
    assert not [problem for problem in check_machine(without, machine) if "NVTE" in problem]


def test_the_doctor_says_which_attention_is_left():
    assert list(attention_notes({"NVTE_FLASH_ATTN": "0"})) == [
        "NVTE_FLASH_ATTN=0: Transformer Engine trains with fused attention"
    ]
    assert "is left no attention" in next(attention_notes(dict.fromkeys(SWITCHES, "0")))
    assert not list(attention_notes({"NVTE_FLASH_ATTN": "1"}))


@pytest.mark.parametrize(
    ("found", "is_noted"), [("2.14.0", True), ("2.11.0+abc", False), ("2.8.0", True), (None, False)]
)
def test_the_doctor_notes_a_transformer_engine_that_megatron_does_not_name(found, is_noted):
    lines = ['transformer-engine[core_cu13,pytorch]<2.12.0,>=2.9.0a0; extra == "dev"', "torch>=2.6", "packaging>=24.2"]
    notes = list(outside_megatrons_own(lines, {"transformer-engine": found, "megatron-core": "0.16.1"}))
    assert bool(notes) is is_noted
    assert all("2.14.0 is outside" in note or "2.8.0 is outside" in note for note in notes)
    assert not list(outside_megatrons_own(["torch"], {"transformer-engine": "2.14", "megatron-core": "0.16.1"}))
