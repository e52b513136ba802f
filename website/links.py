"""Links of the repository's Markdown, made links of the site."""

import os
import re
from pathlib import Path, PurePosixPath

from website.markdown import outside_code

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<before>\]\(|src=\")(?P<target>[^)\"#\s]*)(?P<anchor>#[^)\"\s]*)?(?P<after>[)\"])")
# Files whose pages have other names, and folders that a page stands for.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",
    "CONTRIBUTING.md": "contributing.md",
    "notebooks": "contents.md",
    "benchmarks/records": "results.md",
    "benchmarks/measured": "results.md",
}


class DeadLinkError(ValueError):
    """A link that leads to no file of the repository."""


def rewrite(text: str, source: str, page: str, assets: dict[str, bytes]) -> str:
    """The Markdown of `source`, a path in the repository, with its links as seen from `page` of the site.

    A file that has no page is taken along among `assets`. Links into the web stay as they are.

    Raises:
        DeadLinkError: where there is no such file.
    """

    def replace(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        there = os.path.relpath(place(path, source, assets), PurePosixPath(page).parent)
        return f"{match['before']}{there}{anchor}{match['after']}"

    return outside_code(text, lambda part: LINK.sub(replace, part))


def place(path: str, source: str, assets: dict[str, bytes]) -> str:
    """Where a file or folder of the repository is on the site."""
    file = ROOT / path
    if path.startswith("..") or not file.exists():
        raise DeadLinkError(f"{source} links to {path}, which does not exist")
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/") and file.suffix == ".ipynb":
        return f"tutorials/{file.stem}.md"
    if not file.is_file():
        raise DeadLinkError(f"{source} links to the folder {path}, which has no page")
    kept = f"files/{path}" if file.suffix else f"files/{path}.txt"
    assets[kept] = file.read_bytes()
    return kept
