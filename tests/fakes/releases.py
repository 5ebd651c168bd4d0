"""Doubles of later releases of TensorRT-LLM: that of 1.2 with what their sources have in other words or places.

An edit is a file of the package, a text that it has, and the text that a release has there. Read in
NVIDIA/TensorRT-LLM: #11889, #9675 and #17172, llmapi/llm_args.py and executor/ray/ of the main branch, September 2026.
"""

import shutil
from pathlib import Path

FAKES = Path(__file__).parent
PACKAGE, INFO = "tensorrt_llm", "tensorrt_llm-1.2.1.dist-info"

_TYPES = (FAKES / PACKAGE / "_torch/virtual_memory.py").read_text()
_ENUMERATION = _TYPES[_TYPES.index("class ExecutorMemoryType") : _TYPES.index("def verify_sleep_wakeup_tags")].strip()
_VERIFY = _TYPES[_TYPES.index("def verify_sleep_wakeup_tags") : _TYPES.index("released: set[str]")]
_SLEEP_CONFIG = f"""{_ENUMERATION}
    MODEL_WEIGHTS_MAIN = "model_weights"
    MODEL_WEIGHTS_DRAFT = "draft_model_weights"


class SleepConfig(StrictBaseModel):
    restore_modes: dict = Field(default_factory=lambda: {{"kv_cache": "NONE"}})

    @field_validator("restore_modes", mode="plain")
    @classmethod
    def _validate_restore_modes(cls, v):
        modes = {{ExecutorMemoryType(key).value: value for key, value in v.items()}}
        for mode in modes.values():
            if mode not in ("NONE", "MEMSET", "CPU", "PINNED"):
                raise ValueError(f"invalid restore_mode: {{mode}}. Expected one of: NONE, MEMSET, CPU, PINNED")
        if "kv_cache" not in modes:
            raise ValueError("the double: the KV cache would go to host memory with every sleep")
        return modes


class CapacitySchedulerPolicy("""
_NOT_ENABLED_12 = """        if not self.llm_args.enable_sleep:
            raise ValueError("Sleep feature is not enabled, please set enable_sleep=True in the LLM arguments.")
"""
_NOT_ENABLED_13 = """        if self.llm_args.sleep_config is None:
            raise ValueError("Sleep feature is not enabled, please set sleep_config in the LLM arguments.")
"""
_WORKER, _EXECUTOR, _ARGS = "executor/ray_gpu_worker.py", "executor/ray_executor.py", "llmapi/llm_args.py"

_TO_1_3 = (
    ("version.py", "1.2.1", "1.3.0rc21"),
    ("_torch/virtual_memory.py", _ENUMERATION, ""),
    ("_torch/virtual_memory.py", _VERIFY, ""),
    ("_torch/virtual_memory.py", "from enum import Enum\n", ""),
    (_ARGS, "class CapacitySchedulerPolicy(", _SLEEP_CONFIG),
    (
        _ARGS,
        "import BaseModel, ConfigDict, Field, model_validator",
        "import BaseModel, ConfigDict, Field, field_validator, model_validator",
    ),
    (_ARGS, "    enable_sleep: bool = False\n", "    sleep_config: SleepConfig | None = None\n"),
    (_WORKER, _NOT_ENABLED_12, _NOT_ENABLED_13),
    (_WORKER, "verify_sleep_wakeup_tags(sleep_tags)", "[ExecutorMemoryType(tag) for tag in sleep_tags]"),
    (_WORKER, "verify_sleep_wakeup_tags(wakeup_tags)", "[ExecutorMemoryType(tag) for tag in wakeup_tags]"),
    (
        _WORKER,
        "materialize_with_tag, release_with_tag, verify_sleep_wakeup_tags",
        "materialize_with_tag, release_with_tag\nfrom tensorrt_llm.llmapi.llm_args import ExecutorMemoryType",
    ),
    ("_torch/pyexecutor/py_executor.py", '_MODEL, _CACHE = "model"', '_MODEL, _CACHE = "model_weights"'),
    (
        "_torch/pyexecutor/py_executor.py",
        "    return True\n",
        '    return llm_args.sleep_config.restore_modes.get(_MODEL) not in ("NONE", "MEMSET")\n',
    ),
    (
        "sampling_params.py",
        "@dataclass(slots",
        'class LogprobMode(str, Enum):\n    RAW = "raw"\n    PROCESSED = "processed"\n\n\n@dataclass(slots',
    ),
    ("sampling_params.py", "from typing import Any", "from enum import Enum\nfrom typing import Any"),
    (
        "sampling_params.py",
        "    logprobs: int | None = None\n",
        "    logprobs: int | None = None\n    logprobs_mode: LogprobMode = LogprobMode.RAW\n",
    ),
)
_MOVED_IN_1_4 = {
    "_ray_utils.py": "executor/ray/utils.py",
    _WORKER: "executor/ray/gpu_worker.py",
    _EXECUTOR: "executor/ray/executor.py",
}
_TO_1_4 = (
    ("version.py", "1.3.0rc21", "1.4.0rc1"),
    ("llmapi/rlhf_utils.py", "tensorrt_llm._ray_utils", "tensorrt_llm.executor.ray.utils"),
    ("llmapi/llm.py", "tensorrt_llm.executor.ray_executor", "tensorrt_llm.executor.ray.executor"),
    (_WORKER, "tensorrt_llm._ray_utils", "tensorrt_llm.executor.ray.utils"),
    (_EXECUTOR, "tensorrt_llm._ray_utils", "tensorrt_llm.executor.ray.utils"),
    (_EXECUTOR, "tensorrt_llm.executor.ray_gpu_worker", "tensorrt_llm.executor.ray.gpu_worker"),
    (
        _EXECUTOR,
        "    PlacementGroupSchedulingStrategy,\n    get_current_placement_group,\n    placement_group,\n)\n",
        "    get_current_placement_group,\n    placement_group,\n)\n\ntry:\n"
        "    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy\nexcept ImportError:\n"
        "    from ray.util.placement_group import PlacementGroupSchedulingStrategy\n",
    ),
    (_ARGS, '    sampler_type: Literal["TRTLLMSampler", "TorchSampler", "auto"] = "auto"\n', ""),
    ("_torch/pyexecutor/py_executor.py", "def control_action(self):", "def control_action(self, drain: bool = True):"),
    ("_torch/pyexecutor/samplers.py", "_TORCH_FOLLOWS_SEEDS = False", "_TORCH_FOLLOWS_SEEDS = True"),
)
EDITS = {"1.2": (), "1.3": _TO_1_3, "1.4": (*_TO_1_3, *_TO_1_4)}


def build(release: str, folder: Path) -> Path:
    """Write the double of a release into the folder, to be put on the import path; returns its package folder."""
    package = shutil.copytree(FAKES / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in EDITS[release]:
        text = (package / name).read_text()
        assert before in text, f"{name} has no {before}"
        (package / name).write_text(text.replace(before, after))
    for old, new in (_MOVED_IN_1_4 if release == "1.4" else {}).items():
        (package / new).parent.mkdir(exist_ok=True)
        (package / new).parent.joinpath("__init__.py").touch()
        (package / old).rename(package / new)
    version = (package / "version.py").read_text().split('"')[1]
    info = folder / f"tensorrt_llm-{version}.dist-info"
    info.mkdir()
    metadata = (FAKES / INFO / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace("Version: 1.2.1", f"Version: {version}"))
    return package
