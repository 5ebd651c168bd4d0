"""The versions that a checkpoint names, and what a run that is continued with others is told."""

from importlib import metadata

from nemo_simplerl.trainer.saving.manifest import changed_versions, versions

SAVED = {"python": "3.11.7", "torch": "2.13.0", "megatron-core": "0.16.1"}


def test_a_package_that_runs_from_a_checkout_has_no_version_and_the_checkpoint_is_saved_all_the_same(monkeypatch):
    seen = metadata.version

    def version(name):
        if name == "nemo_simplerl":
            raise metadata.PackageNotFoundError(name)
        return seen(name)

    monkeypatch.setattr(metadata, "version", version)
    found = versions()
    assert found["nemo_simplerl"] == "not installed" and found["megatron-core"] == seen("megatron-core")
    assert found.keys() >= {"python", "torch", "transformers"}


def test_a_run_continued_with_other_versions_is_told_which_and_what_follows():
    assert changed_versions(SAVED, SAVED | {"transformers": "5.24.0"}) is None
    assert changed_versions(SAVED, SAVED | {"python": "3.12.1", "megatron-core": "0.19.2"}) == (
        "saved with python 3.11.7, megatron-core 0.16.1; continued with python 3.12.1, megatron-core 0.19.2: "
        "from here on numbers may differ in rounding"
    )
