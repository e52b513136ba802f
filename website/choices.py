"""Choices of conf/: their comments, what they build, and each option with its default and its meaning."""

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from scoregen.config import locate
from scoregen.validation import describe_arguments
from website.docstrings import arguments
from website.links import ROOT

LINE = re.compile(r"(?P<indent> *)(?P<key>[\w./ ]+):\s*(?P<value>.*?)\s*(?:#\s*(?P<comment>.*))?$")


@dataclass
class Node:
    """A node with `_target_`: its path within the choice, and its options as (key, default, comment)."""

    path: str
    target: str = ""
    options: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def built(self) -> Any:
        """The class or function that it names."""
        return locate(self.target)

    def allowed(self, key: str) -> str:
        """What an option may be, in words; "" where its type says nothing."""
        return describe_arguments(self.built).get(key, "") if self.target else ""

    def meaning(self, key: str) -> str:
        """What the docstrings of the class and those it inherits from say of an option."""
        for kind in getattr(self.built, "__mro__", [self.built]) if self.target else ():
            if key in (said := arguments(inspect.getdoc(kind) or "")):
                return said[key]
        return ""


@dataclass(frozen=True)
class Choice:
    """One file of conf/GROUP/: its name, the comment at its head, and its nodes, outermost first."""

    group: str
    name: str
    comment: str
    nodes: list[Node]

    @property
    def file(self) -> str:
        """Its path in the repository."""
        return f"conf/{self.group}/{self.name}.yaml"

    @property
    def options(self) -> list[tuple[str, str, str, str]]:
        """(path, default, what it may be, meaning) of every option; the file's comments before docstrings."""
        return [
            (f"{node.path}.{key}".lstrip("."), value, node.allowed(key), comment or node.meaning(key))
            for node in self.nodes
            for key, value, comment in node.options
        ]


@cache
def read(group: str, name: str) -> Choice:
    """The choice `name` of a group."""
    file = ROOT / f"conf/{group}/{name}.yaml"
    head, written = _lines(file.read_text())
    nodes: list[Node] = []
    _walk(OmegaConf.to_container(OmegaConf.load(file), resolve=False), "", written, nodes)
    return Choice(group, name, "\n".join(line for line in head if line != "@package _global_"), nodes)


def _walk(plain: Any, path: str, written: dict[str, tuple[str, str]], nodes: list[Node]) -> None:
    """Append the node at `path` and those below it, with values and comments as they are written."""
    node = Node(path, plain.get("_target_", ""))
    nodes.append(node)
    for key, value in plain.items():
        below = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            _walk(value, below, written, nodes)
        elif key not in ("_target_", "defaults"):
            text, comment = written.get(below, ("", ""))
            node.options.append((str(key), text or _plain(value), comment))


def _lines(text: str) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The comment at the head, and (value, comment) by path; a line's own comment or the lines before it."""
    head: list[str] = []
    written: dict[str, tuple[str, str]] = {}
    parents: list[tuple[int, str]] = []
    noted = ""
    for line in text.split("\n"):
        if line.lstrip().startswith("#"):
            comment = line.strip().removeprefix("#").strip()
            noted, head = (f"{noted} {comment}".strip(), head) if written else (noted, [*head, comment])
        elif match := LINE.fullmatch(line):
            indent = len(match["indent"])
            parents = [parent for parent in parents if parent[0] < indent]
            path = ".".join([*(key for _, key in parents), match["key"]])
            parents.append((indent, match["key"]))
            written[path] = match["value"], match["comment"] or noted
            noted = ""
    return head, written


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
