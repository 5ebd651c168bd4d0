"""A package that keeps a contract (rollout/own_process/source_rules.py has the kinds of rows) and has nothing else."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from nemo_simplerl.rollout.own_process.source_rules import Fields, Function, Place, Rule, Says


def write_stub(folder: Path, contract: Iterable[Rule]) -> Path:
    """Write the files that the rows name, below `folder`; returns it."""
    texts: dict[Place, list[str]] = defaultdict(list)
    classes: dict[tuple[Place, str], list[str]] = defaultdict(list)
    for rule in contract:
        if isinstance(rule, Says):
            texts[rule.file] += [f"# {text}" for text in rule.texts]
        elif isinstance(rule, Fields):
            classes[rule.file, rule.name] += [f"{field}: object" for field in rule.fields]
        else:
            assert isinstance(rule, Function), rule
            owner, _, name = rule.name.rpartition(".")
            function = f"def {name}({', '.join(['self'] * bool(owner) + list(rule.params))}): {list(rule.says)}"
            (classes[rule.file, owner] if owner else texts[rule.file]).append(function)
    for (file, name), lines in classes.items():
        texts[file] += [f"class {name}:", *(f"    {line}" for line in lines)]
    for file, lines in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder
