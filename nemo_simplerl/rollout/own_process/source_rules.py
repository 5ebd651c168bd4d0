"""Kinds of assumptions about a package's sources, each checked by reading them: nothing is imported."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Where a file lies, or the places where releases have it; the first that is there counts.
Place = str | tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """A function or method that takes these parameters; `Class.method` may be defined by a base in the same file."""

    file: Place
    name: str
    params: tuple[str, ...] = ()
    decorator: str | None = None
    is_async: bool = False
    says: tuple[str, ...] = ()  # texts that its source holds


@dataclass(frozen=True)
class Fields:
    """A class with these annotated fields or enumeration members, its own or those of bases in the same file."""

    file: Place
    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Says:
    """A file whose source holds these texts."""

    file: Place
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Imports:
    """A file that must import the module if it uses it: one version of 1.2 forgot to."""

    file: Place
    module: str


@dataclass(frozen=True)
class LacksMethod:
    """A file in which no class defines the method. Where one does, workers may be reached without Ray."""

    file: Place
    method: str


Rule = Function | Fields | Says | Imports | LacksMethod


def file_of(rule: Rule, package: Path) -> str:
    """Where the package folder has the rule's file; its newest place where it has none."""
    places = (rule.file,) if isinstance(rule.file, str) else rule.file
    return next((place for place in places if (package / place).is_file()), places[0])


def broken(rules: tuple[Rule, ...], package: Path) -> list[str]:
    """The rules that the package folder breaks, each as `file: what is missing`."""
    found: list[str] = []
    sources: dict[str, _Source | str] = {}
    for rule in rules:
        file = file_of(rule, package)
        if file not in sources:
            sources[file] = _read(package, file)
        read = sources[file]
        if isinstance(read, str):
            if read not in found and not isinstance(rule, LacksMethod):
                found.append(read)
        else:
            found += [f"{file}: {problem}" for problem in _problems(rule, read)]
    return found


def missing_imports(package: Path, library: str, found_at: Path) -> Iterator[str]:
    """What the package's files import by `from LIBRARY... import NAME` and the library does not have, as `file: ...`.

    An import that a `try` follows by an `except ImportError` counts when either side can be had. found_at: folder of
    the library's package.
    """
    uses = re.compile(rf"^\s*from {library}[. ]", re.MULTILINE)
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(errors="replace")
        if uses.search(text):
            lacking = _lacking(ast.parse(text).body, library, found_at)
            yield from (f"{path.relative_to(package)} imports {name}, which it has not" for name in lacking)


def _lacking(statements: list[ast.stmt], library: str, found_at: Path) -> list[str]:
    lacking: list[str] = []
    for node in statements:
        if isinstance(node, ast.Try) and any(_catches_imports(handler) for handler in node.handlers):
            ways = [node.body, *(handler.body for handler in node.handlers)]
            found = [_lacking(way, library, found_at) for way in ways]
            lacking += [] if [] in found else found[0]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == library:
            lacking += [
                f"{alias.name} from {node.module}"
                for alias in node.names
                if not node.level and not _has(found_at, node.module, alias.name)
            ]
        else:
            inner = [getattr(node, field, []) for field in ("body", "orelse", "handlers", "finalbody")]
            lacking += [name for body in inner for name in _lacking(body, library, found_at)]
    return lacking


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    return (
        handler.type is None or "ImportError" in ast.unparse(handler.type) or "ModuleNot" in ast.unparse(handler.type)
    )


def _has(found_at: Path, module: str, name: str) -> bool:
    """Whether the library's module has a name at its top level, or a submodule so called."""
    place = found_at.joinpath(*module.split(".")[1:])
    if any(place.joinpath(name).with_suffix(suffix).exists() for suffix in ("", ".py", ".pyi")):
        return True
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():  # a compiled module can hold anything
        return any(place.parent.glob(f"{place.name}.*so"))
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return bool(names & {name, "*", "__getattr__"})


@dataclass(frozen=True)
class _Source:
    """A parsed file, its classes by name, and other names of them."""

    text: str
    tree: ast.Module
    classes: dict[str, ast.ClassDef]
    aliases: dict[str, str]

    def lineage(self, name: str) -> Iterator[ast.ClassDef]:
        """The class and those of its bases that this file defines."""
        name = self.aliases.get(name, name)
        if name in self.classes:
            yield self.classes[name]
            for base in self.classes[name].bases:
                yield from self.lineage(ast.unparse(base))

    def function(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        owner, _, function = name.rpartition(".")
        bodies = [node.body for node in self.lineage(owner)] if owner else [self.tree.body]
        for body in bodies:
            for node in body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == function:
                    return node
        return None


def _read(source: Path, file: str) -> _Source | str:
    """The parsed file, or what is wrong with it."""
    try:
        text = (source / file).read_text()
        tree = ast.parse(text)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return f"{file}: cannot be read ({error})"
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    aliases = {
        target.id: node.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return _Source(text, tree, classes, aliases)


def _problems(rule: Rule, source: _Source) -> Iterator[str]:
    """What the file lacks of one rule, in words."""
    if isinstance(rule, Function):
        yield from _problems_of_function(rule, source)
    elif isinstance(rule, Fields):
        lineage = list(source.lineage(rule.name))
        if not lineage:
            yield f"there is no class {rule.name}"
            return
        names = {name for node in lineage for name in _field_names(node)}
        yield from (f"{rule.name} has no field {field}" for field in rule.fields if field not in names)
    elif isinstance(rule, Says):
        yield from (f"nowhere says {text}" for text in rule.texts if not _says(source.text, text))
    elif isinstance(rule, Imports):
        used = any(isinstance(node, ast.Name) and node.id == rule.module for node in ast.walk(source.tree))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(source.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        if used and rule.module not in imported:
            yield f"uses {rule.module} without importing it: its callers get a NameError"
    elif any(rule.method in {getattr(item, "name", None) for item in node.body} for node in source.classes.values()):
        yield f"a class now has {rule.method}: workers may be reached without Ray"


def _problems_of_function(rule: Function, source: _Source) -> Iterator[str]:
    node = source.function(rule.name)
    if node is None:
        yield f"there is no {rule.name}"
        return
    given = node.args
    names = {arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if arg}
    yield from (f"{rule.name} has no parameter {param}" for param in rule.params if param not in names)
    decorators = [ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list]
    if rule.decorator is not None and rule.decorator not in decorators:
        yield f"{rule.name} is not decorated by {rule.decorator}"
    if rule.is_async != isinstance(node, ast.AsyncFunctionDef):
        yield f"{rule.name} is {'not' if rule.is_async else 'now'} async"
    text = ast.unparse(node)
    yield from (f"{rule.name} nowhere says {said}" for said in rule.says if not _says(text, said))


def _field_names(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _says(text: str, said: str) -> bool:
    """Whether the text contains `said`, in either kind of quotes."""
    return said in text or said.replace('"', "'") in text
