"""A worker's memory by tag, present or released. One worker a process, as in the real package."""

from collections.abc import Callable
from enum import Enum


class ExecutorMemoryType(str, Enum):
    SAMPLER = "sampler"
    DRAFTER = "drafter"
    GUIDED_DECODER = "guided_decoder"
    SPEC_RESOURCES = "spec_resource_manager"
    INIT_KV_CACHE = "_no_capture_init_kv_cache"
    INIT_EXTRA_RESOURCES = "_no_capture_init_extra_resources"
    MODEL_EXTRA = "model_extra"
    EXTRA_RESOURCES = "executor_extra"
    KV_CACHE = "kv_cache"
    MODEL_ENGINE_MAIN = "model"
    MODEL_ENGINE_DRAFT = "draft_model"


def verify_sleep_wakeup_tags(tags_strs: list[str]) -> list[ExecutorMemoryType]:
    tags = []
    for tag_str in tags_strs:
        try:
            tags.append(ExecutorMemoryType(tag_str))
        except ValueError:
            valid = [tag.value for tag in ExecutorMemoryType]
            raise ValueError(f"Unknown memory tag '{tag_str}'.Valid tags are: {valid}") from None
    return tags


released: set[str] = set()
# Tag -> what happens to its contents when it goes and when it comes back.
contents: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}


def release_with_tag(*tags: str) -> int:
    for tag in map(_text, tags):
        if tag in released:
            raise RuntimeError(f"the double: memory of {tag!r} is released already")
        released.add(tag)
        contents.get(tag, (lambda: None,))[0]()
    return len(tags)


def materialize_with_tag(*tags: str) -> int:
    for tag in map(_text, tags):
        if tag not in released:
            raise RuntimeError(f"the double: memory of {tag!r} is there already")
        contents.get(tag, (None, lambda: None))[1]()
        released.remove(tag)
    return len(tags)


def _text(tag: str) -> str:
    return getattr(tag, "value", tag)
