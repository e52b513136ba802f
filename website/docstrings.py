"""Docstrings of this project as Markdown: prose flows, formulas keep their lines, sources are linked."""

import re
from collections.abc import Iterator
from itertools import groupby, pairwise

HEADERS = ("Args:", "Returns:", "Raises:")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def to_markdown(docstring: str) -> str:
    """The docstring, cleaned of its indentation, as a page shows it."""
    paragraphs = re.split(r"\n\s*\n|\n(?=Source: |Raises UserError)", docstring.strip())
    return "\n\n".join(filter(None, (_paragraph(paragraph) for paragraph in paragraphs)))


def headline(docstring: str) -> str:
    """The first sentence, escaped for a table."""
    first = re.split(r"\n\s*\n", docstring.strip())[0].replace("\n", " ")
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", first)[0]
    return escape(sentence)


def remarks(comment: str) -> str:
    """A comment of a configuration: lines flow on unless a sentence or a command ends without a full stop."""
    lines = comment.split("\n")
    text = escape(lines[0])
    for before, line in pairwise(lines):
        ends = line.startswith("python ") or (not before.endswith((".", ",", ";")) and line[:1].isupper())
        text += ("<br>" if ends else " ") + escape(line)
    return text


def arguments(docstring: str) -> dict[str, str]:
    """What the docstring says of each argument."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n(?= {4}))+)", docstring, re.MULTILINE)
    said = {}
    for entry in _entries(section[1].split("\n")) if section else ():
        names, _, text = entry.partition(": ")
        said |= dict.fromkeys(names.split(", "), text.removesuffix("."))
    return said


def escape(text: str) -> str:
    """Text that Markdown leaves as it is, but for `code` and arXiv numbers, which become links."""
    pieces = re.split(r"(`[^`]+`)", text)
    plain = [piece if piece.startswith("`") and len(piece) > 1 else _escaped(piece) for piece in pieces]
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(plain))


def _escaped(text: str) -> str:
    return re.sub(r"[&<>\\\\*_\[\]#|$]", lambda match: f"&#{ord(match[0])};", text)


def _paragraph(paragraph: str) -> str:
    lines = paragraph.split("\n")
    header = next((header for header in HEADERS if lines[0].strip() == header), None)
    if header:
        rest = _paragraph("\n".join(_after(lines[1:])))
        return "\n".join([f"**{header.removesuffix(':')}**", "", *_items(lines[1:])]) + (
            f"\n\n{rest}" if rest else ""
        )
    if all(line.startswith("    ") for line in lines):
        return "```text\n" + "\n".join(line[4:] for line in lines) + "\n```"
    blocks = []
    for formulas, group in groupby(lines, is_formula):
        text = [line.strip() for line in group]
        blocks.append("```text\n" + "\n".join(text) + "\n```" if formulas else escape(" ".join(text)))
    return "\n\n".join(block for block in blocks if block)


def is_formula(line: str) -> bool:
    """Whether a line is mathematics: it relates two sides, and holds few words."""
    if not re.search(r" (=|<-|~|<=|>=|->) ", line) or "`" in line or re.match(r"[A-Z][a-z]{3,} ", line):
        return False
    if len(re.findall(r"\b(?:the|of|at|is|are|and|a|an|to|with|its|in)\b", line)) > 1:
        return False
    words = re.findall(r"(?<![\w.])[A-Za-z]{4,}(?![\w(])", line)
    return len(words) <= 2 or len(words) / len(line.split()) < 0.2


def _entries(section: list[str]) -> list[str]:
    """The entries of an indented section, of which a line may hold several: "a: one. b, c: two"."""
    between = re.compile(r"(?<=\.) (?=(?:\w+, )*[a-z]\w*: )")
    return [entry for line in _lines(section) for entry in between.split(line)]


def _lines(section: list[str]) -> list[str]:
    """The lines of an indented section, those joined that go on deeper."""
    lines: list[str] = []
    for line in section:
        if not line.startswith("    "):
            break
        if line.startswith("     ") and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
    return lines


def _items(section: list[str]) -> Iterator[str]:
    """A list of the arguments in an indented section."""
    for item in _entries(section):
        names, colon, text = item.partition(": ")
        if colon and re.fullmatch(r"[\w, *.]+", names):
            code = ", ".join(f"`{name.strip()}`" for name in names.split(","))
            yield f"- {code}: {escape(text)}"
        else:
            yield f"- {escape(item)}"


def _after(lines: list[str]) -> list[str]:
    """The lines behind an indented section, where a paragraph goes on without a blank line."""
    return next((lines[i:] for i, line in enumerate(lines) if not line.startswith("    ")), [])
