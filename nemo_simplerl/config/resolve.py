"""Resolves OmegaConf's tree to plain values. OmegaConf stops at the first key that fails; this finds them all."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(kw_only=True)
class Resolved:
    """Plain nested values, None where a key has none; keys without a value; and the failures by reason."""

    values: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  # reason -> {key: text as written}


def resolve(tree: "DictConfig") -> Resolved:
    """The tree with every interpolation, `${oc.env:NAME,default}` among them, replaced by its value."""
    found = Resolved()
    found.values = _section(tree, "", found)
    return found


def _section(node: "DictConfig", path: str, found: Resolved) -> dict[str, Any]:
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain: dict[str, Any] = {}
    for name in map(str, node):
        key = f"{path}.{name}" if path else name
        plain[name] = None
        if OmegaConf.is_missing(node, name):
            found.missing.append(key)
            continue
        try:
            value = node[name]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raw: Any = OmegaConf.to_container(node, resolve=False)
            found.failed.setdefault(str(error).splitlines()[0], {})[key] = str(raw[name])
            continue
        plain[name] = _section(value, key, found) if isinstance(value, DictConfig) else value
    return plain
