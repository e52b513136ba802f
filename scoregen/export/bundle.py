"""Source files that run without scoregen: modules with all that they import of it, in one flat folder."""

import ast
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_IMPORT = re.compile(r"^(\s*)from (scoregen[\w.]*) import (?=\S)", re.MULTILINE)


def flat(module: str) -> str:
    """The name in the flat folder of scoregen.networks.layers: scoregen_networks_layers."""
    return module.replace(".", "_")


def bundle(entry: str, others: Iterable[str], name: str) -> dict[str, str]:
    """The text of each file: `name`.py is the module `entry`, the rest what it and `others` import.

    The docstring of the first lists the rest in the form of imports: diffusers copies to its cache the files
    that the entry's text names in this way, and no others.

    Args:
        entry: name of the module to be loaded.
        others: names of modules that it needs without importing them, as it builds from a configuration.
        name: of its file.
    """
    modules = _closure([entry, *others])
    text = _relative(modules.pop(entry))
    listed = "\n".join(f"from .{flat(module)} import *" for module in sorted(modules))
    docstring = ast.get_docstring(ast.parse(text), clean=False)
    assert docstring is not None, "every module has a docstring"
    text = text.replace(
        docstring, f"{docstring}\n\nThe files beside this one that it needs:\n\n{listed}\n", 1
    )
    return {f"{name}.py": text} | {
        f"{flat(module)}.py": _relative(source) for module, source in modules.items()
    }


def _closure(roots: Iterable[str]) -> dict[str, str]:
    """The modules and all modules of scoregen that they import, with their sources."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = _source(module)
            waiting += _imports(found[module])
    return found


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None, f"{module} is no module"
    assert spec.origin is not None, f"{module} has no source"
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(source: str) -> set[str]:
    """The modules of scoregen that a source imports, anywhere in it."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    pairs = [(node.module or "", alias.name) for node in nodes for alias in node.names]
    return {
        f"{module}.{name}" if _is_module(f"{module}.{name}") else module
        for module, name in pairs
        if module.partition(".")[0] == "scoregen"
    }


def _relative(source: str) -> str:
    """The source with its imports from scoregen turned into imports from the same folder."""

    def rewrite(match: re.Match[str]) -> str:
        indent, module = match[1], match[2]
        name = source[match.end() :].split(maxsplit=1)[0]
        if _is_module(f"{module}.{name}"):
            return f"{indent}from . import {flat(f'{module}.{name}')} as "
        return f"{indent}from .{flat(module)} import "

    return _IMPORT.sub(rewrite, source)


def _is_module(name: str) -> bool:
    """Whether it is a module rather than what a module defines."""
    package = find_spec(name.rpartition(".")[0])
    return (
        package is not None and package.submodule_search_locations is not None and find_spec(name) is not None
    )
