"""Read what a dotted path names from its source text: nothing is imported, nothing runs.

A path reaches the packages of this repository and the files that the user names on this command.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from sgdpo.values import Name, OneOf, Range, Unreadable

PACKAGES = ("sgdpo", "lab")
KNOWN = {t.__name__: t for t in (int, float, bool, str, list, dict, tuple, Range, OneOf, Name)} | {
    "Mapping": dict,
    "Sequence": list,
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Annotated", "Optional", "Union")},
}


@dataclass(frozen=True)
class Module:
    """Hold a module's text, parsed, and by name what its top level defines or imports."""

    path: Path
    names: dict[str, ast.AST]
    extra: tuple[str, ...]

    def follow(self, name: str) -> tuple[Module, ast.AST] | None:
        """Return where a name is defined, through imports; None if that is outside the reach of a path."""
        node = self.names.get(name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else (self, node)
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        try:
            return _module(_file_of(node.module or "", self.extra), self.extra).follow(original)
        except ValueError:
            return None


class _Names(dict[str, Any]):
    """What the names in an annotation stand for."""

    def __init__(self, module: Module):
        super().__init__(KNOWN)
        self._module = module

    def __missing__(self, name: str) -> Any:
        found = self._module.follow(name)
        return (
            Unreadable if found is None or not isinstance(found[1], ast.expr) else _hint(found[1], found[0])
        )


@dataclass(frozen=True)
class Definition:
    """Hold what a dotted path names and the module around it."""

    path: str
    node: ast.FunctionDef | ast.ClassDef
    module: Module

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def positional(self) -> list[str]:
        """Return the names of a function's positional parameters."""
        assert isinstance(self.node, ast.FunctionDef), "a class is called by keyword"
        return [argument.arg for argument in (*self.node.args.posonlyargs, *self.node.args.args)]

    @property
    def parameters(self) -> dict[str, tuple[Any, bool]]:
        """Return {name: (annotation, required)} of the keyword-only parameters, or of the dataclass fields."""
        if isinstance(self.node, ast.FunctionDef):
            return _keywords(self.node, self.module)
        found: dict[str, tuple[Any, bool]] = {}
        for cls in self._classes():
            for node in cls.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    return found | _keywords(node, cls.module)
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    hint = _hint(node.annotation, cls.module)
                    found.setdefault(node.target.id, (hint, node.value is None))
        return found

    @property
    def attributes(self) -> set[str]:
        """Return the names that a class and those it derives from define; what is abstract is left to define."""
        found = set(self.parameters)
        for node in (node for cls in self._classes() for node in cls.node.body):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not _is_abstract(node):
                found.add(node.name)
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        return found

    def keys_of(self, attribute: str) -> set[str]:
        """Return the constant keys that the source reads of an attribute: {"entropy"} of x.features["entropy"]."""
        read = [node for node in self._nodes() if isinstance(node, ast.Subscript)]
        mine = [node.slice for node in read if getattr(node.value, "attr", None) == attribute]
        return {str(key.value) for key in mine if isinstance(key, ast.Constant)}

    def attributes_read(self) -> set[str]:
        """Return the names of the attributes that the source reads: {"ratio_B"} of pair.chosen.ratio_B."""
        return {node.attr for node in self._nodes() if isinstance(node, ast.Attribute)}

    def _nodes(self) -> Iterator[ast.AST]:
        """Yield the source's nodes, and those of the functions that it names, as far as a path reaches."""
        asked: list[tuple[ast.AST, Module]] = [(self.node, self.module)]
        for node, module in asked:  # grows on the way
            for inside in ast.walk(node):
                yield inside
                found = module.follow(inside.id) if isinstance(inside, ast.Name) else None
                if found is not None and isinstance(found[1], ast.FunctionDef):
                    asked += [] if any(found[1] is other for other, _ in asked) else [(found[1], found[0])]

    def _classes(self) -> Iterator[Definition]:
        """Return the class and those it derives from, as far as a path reaches, nearest first."""
        yield self
        for base in getattr(self.node, "bases", ()):
            found = self.module.follow(base.id) if isinstance(base, ast.Name) else None
            if found is not None and isinstance(found[1], ast.ClassDef):
                yield from Definition(base.id, found[1], found[0])._classes()


def _is_abstract(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "abstractmethod" for mark in node.decorator_list)


def find(path: Any, extra: Sequence[str] = ()) -> Definition:
    """Find what a dotted path names. Raise ValueError naming what is missing."""
    if not isinstance(path, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
        raise ValueError(f"cannot import {path!r}: it must be package.module.name")
    module, _, name = path.rpartition(".")
    try:
        found = _module(_file_of(module, tuple(extra)), tuple(extra)).follow(name)
    except ValueError as error:
        raise ValueError(f"cannot import {path!r}: {error}") from None
    if found is None or not isinstance(found[1], (ast.FunctionDef, ast.ClassDef)):
        raise ValueError(f"cannot import {path!r}: {module} defines no function or class {name!r}")
    return Definition(path, found[1], found[0])


def load_dotted(path: str, extra: Sequence[str] = ()) -> Any:
    """Import what a dotted path names. Raise ValueError if it is not there, or not within reach."""
    find(path, extra)
    name, _, attribute = path.rpartition(".")
    file = _file_of(name, tuple(extra))
    if name.split(".")[0] in PACKAGES:
        return getattr(importlib.import_module(name), attribute)
    module = sys.modules.get(name)
    if module is None or Path(module.__file__ or "") != file:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, "it ends in .py"
        assert spec.loader is not None, "it ends in .py"
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(module, attribute)


def _file_of(module: str, extra: tuple[str, ...]) -> Path:
    """Return the file of a module of the packages, or the one that the user named."""
    if module.split(".")[0] in PACKAGES:
        place = Path(__file__).resolve().parents[1].joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
        raise ValueError(f"there is no module {module}")
    for given in map(Path, extra):
        if given.suffix == ".py" and given.stem == module and given.is_file():
            spec = PathFinder.find_spec(module)
            installed = spec is not None and Path(spec.origin or "").resolve() != given.resolve()
            if installed or module in sys.builtin_module_names:
                raise ValueError(f"{given} has the name of an installed module; rename the file")
            return given.resolve()
    raise ValueError(
        f"{module} is neither of {' and '.join(PACKAGES)} nor a file named on this command; "
        f"extra=[path/to/{module.split('.')[-1]}.py] lets a file of yours run"
    )


@cache
def _module(path: Path, extra: tuple[str, ...]) -> Module:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    names: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return Module(path, names, extra)


def _keywords(function: ast.FunctionDef, module: Module) -> dict[str, tuple[Any, bool]]:
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {
        argument.arg: (_hint(argument.annotation, module), default is None) for argument, default in pairs
    }


def _hint(node: ast.expr | None, module: Module) -> Any:
    """Return the type that an annotation stands for: its names are known types, or read further, or opaque."""
    if node is None:
        return Any
    try:
        hint = eval(
            compile(ast.Expression(node), str(module.path), "eval"), {"__builtins__": {}}, _Names(module)
        )
        return _hint(ast.parse(hint, mode="eval").body, module) if isinstance(hint, str) else hint
    except (TypeError, SyntaxError):
        return Unreadable


def module_texts(*modules: ModuleType) -> list[str]:
    """Return the source text of modules: in a key, it keeps what changed code makes apart from what the old made."""
    return [Path(module.__file__ or "").read_text("utf-8") for module in modules]
