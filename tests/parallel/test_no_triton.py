"""Megatron-core is imported where Triton is absent, as beside a CPU build of torch."""

import importlib.util
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.version import Version

from nemo_simplerl.parallel import no_triton

MEGATRON = Version(metadata.version("megatron-core"))
PAGED_STASH = "megatron.core.transformer.moe.ops.paged_stash"


@pytest.mark.parametrize(("name", "is_found"), [("triton", False), ("torch", True)])
def test_the_stand_in_is_found_only_where_triton_is_not(monkeypatch, name, is_found):
    """torch stands for a Triton that is there."""
    look = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None if name == "triton" else look(name))
    no_triton.let_megatron_import_without_triton()
    (finder,) = [finder for finder in sys.meta_path if isinstance(finder, no_triton._StandIn)]
    spec = finder.find_spec(PAGED_STASH)
    assert (spec is None) == is_found and finder.find_spec("megatron.core") is None
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.GLOBAL_BLOCK_SIZE == 1024 and module.paged_stash_pop_kernel is None


@pytest.mark.slow
@pytest.mark.skipif(MEGATRON.release < (0, 19), reason=f"Megatron-core {MEGATRON} needs no Triton")
@pytest.mark.parametrize("first", ["model.network.provider", "trainer.learners.learner"])
def test_whichever_module_comes_first_megatron_is_imported_without_triton(first):
    code = f"import sys; sys.modules['triton'] = None; import nemo_simplerl.{first}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
