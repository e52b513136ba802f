"""From Markdown as GitHub reads it to Markdown as mkdocs reads it."""

import re
from collections.abc import Callable, Iterator

ITEM = re.compile(r"\s*([-*+]|\d+\.)\s+\S")
DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
MATH = re.compile(r"(?<![\\$\w`])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$])")


def adapt(text: str) -> str:
    """Set lists apart from the paragraphs before them, and typeset $mathematics$."""
    return outside_code("\n".join(_spaced(text.split("\n"))), mathml)


def mathml(text: str) -> str:
    """Text with its $formulas$ as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    text = DISPLAYED.sub(lambda match: convert(match[1], display="block"), text)
    return MATH.sub(lambda match: convert(match[1]), text)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The Markdown with all that is neither in a fenced block nor in `code` changed, line by line."""
    fenced, lines = False, []
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        parts = [line] if fenced else re.split(r"(`[^`]*`)", line)
        lines.append("".join(part if fenced or part.startswith("`") else change(part) for part in parts))
    return "\n".join(lines)


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown; cells must be Markdown that has no bare bars."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _spaced(lines: list[str]) -> Iterator[str]:
    fenced, previous = False, ""
    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        starts = not fenced and ITEM.match(line) and not line.startswith("    ")
        if starts and previous.strip() and not ITEM.match(previous) and not previous.startswith(" "):
            yield ""
        yield line
        previous = line
