"""A stand-in for the one module of Megatron-core that cannot be imported without Triton. Imports no torch itself."""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PAGED_STASH = "megatron.core.transformer.moe.ops.paged_stash"


def let_megatron_import_without_triton() -> None:
    """Have Python find the stand-in where Triton is absent, as beside a CPU build of torch.

    From 0.19 on GPTModel and the pipeline schedules import, through transformer.moe.paged_stash, kernels written in
    Triton that move the tokens of experts. No model here has experts. Triton itself is not stood in for: torch looks
    for it to know whether it can compile for a GPU. 0.16 and 0.17 have no such module; setup.py leaves 0.18 out, whose
    own module of that name asks for Triton itself.
    """
    if not any(isinstance(finder, _StandIn) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StandIn())


class _StandIn(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        if name != _PAGED_STASH or importlib.util.find_spec("triton") is not None:
            return None
        return ModuleSpec(name, self)

    def exec_module(self, module: ModuleType) -> None:
        module.GLOBAL_BLOCK_SIZE = 1024
        module.paged_stash_copy_kernel = module.paged_stash_pop_kernel = None  # nothing here calls them
