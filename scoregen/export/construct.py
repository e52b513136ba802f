"""Build what an exported configuration describes, from the modules that lie beside this file."""

from importlib import import_module
from typing import Any


def construct(node: Any) -> Any:
    """The object that {"_target_": "module.Class", argument: value, ...} names, innermost first."""
    if isinstance(node, list | tuple):
        return tuple(construct(item) for item in node)
    if not isinstance(node, dict):
        return node
    module, _, name = node["_target_"].rpartition(".")
    arguments = {key: construct(value) for key, value in node.items() if key != "_target_"}
    return getattr(import_module(f".{module}", __package__), name)(**arguments)
