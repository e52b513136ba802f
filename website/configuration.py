"""One page of all options that a run has, but for those of the methods, which have pages of their own."""

import inspect
from typing import TYPE_CHECKING

from scoregen import config
from website import choices
from website.docstrings import remarks, to_markdown
from website.methods import GROUPS, options

if TYPE_CHECKING:
    from website.site import Site

APART = {*GROUPS, "experiment"}


def add(site: "Site") -> dict[str, list[dict[str, str]]]:
    """Add a page for each group; their navigation."""
    entries = []
    for group in sorted(config.groups().keys() - APART):
        site.pages[f"options/{group}.md"] = _page(group)
        entries.append({group: f"options/{group}.md"})
    return {"Options": entries}


def _page(group: str) -> str:
    parts = [f"# {group}", f"The choices of `conf/{group}/`, taken as `{group}=NAME`."]
    for name in config.groups()[group]:
        choice = choices.read(group, name)
        target = choice.nodes[0].target
        own = target.startswith("scoregen.")
        doc = (
            to_markdown(inspect.getdoc(choice.nodes[0].built) or "")
            if own
            else f"`{target}`"
            if target
            else ""
        )
        parts += [f"## {name}", remarks(choice.comment), doc, options(choice)]
    return "\n\n".join(part for part in parts if part)
