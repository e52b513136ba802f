"""The pages of docs/, in the order of its index, docs/README.md."""

import re
from typing import TYPE_CHECKING, Any

from website.links import ROOT, rewrite
from website.markdown import adapt

if TYPE_CHECKING:
    from website.site import Site

OTHERS = {"README.md": "index.md", "docs/README.md": "contents.md", "CONTRIBUTING.md": "contributing.md"}


def add(site: "Site") -> dict[str, list[Any]]:
    """Add every page of docs/; their navigation by the headings of the index."""
    sources = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))} | OTHERS
    for source, page in sources.items():
        text = (ROOT / source).read_text()
        site.pages[page] = adapt(rewrite(text, source, page, site.assets))
    return _navigation()


def _navigation() -> dict[str, list[Any]]:
    """Pages by section: each row's own page, then those that the row mentions, each once."""
    sections: dict[str, list[Any]] = {"Start": [{"Home": "index.md"}, {"All pages": "contents.md"}]}
    seen, section = set[str](), ""
    for line in (ROOT / "docs/README.md").read_text().split("\n"):
        if line.startswith("## "):
            section = line.removeprefix("## ").strip()
        for title, page in re.findall(r"\[([^]]+)\]\((\w+\.md)\)", line) if line.startswith("|") else ():
            if page not in seen:
                seen.add(page)
                first = line.startswith(f"| [{title}]")
                sections.setdefault(section, []).append(
                    {_capital(title) if first else page_title(page): page}
                )
    sections["Start"].append({"Contributing": "contributing.md"})
    return sections


def page_title(page: str) -> str:
    """The first heading of a page of docs/."""
    return (ROOT / "docs" / page).read_text().split("\n", 1)[0].removeprefix("# ").strip()


def mentions(name: str) -> list[str]:
    """The pages of docs/ that speak of `name` in code, and how often, most first."""
    found = []
    for path in (ROOT / "docs").glob("*.md"):
        count = len(re.findall(rf"(?:`|=|--sampler )({re.escape(name)})(?![\w.])", path.read_text()))
        if count and path.name not in ("README.md", "results.md"):
            found.append((-count, path.name))
    return [page for _, page in sorted(found)]


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
