"""The reference of the code: a page for each package, of which mkdocstrings makes the content."""

import pkgutil
from typing import TYPE_CHECKING

import griffe

import scoregen
from website.docstrings import to_markdown

if TYPE_CHECKING:
    from website.site import Site


def add(site: "Site") -> dict[str, list[dict[str, str]]]:
    """Add the pages; their navigation."""
    entries, alone = [], []
    for module in pkgutil.iter_modules(scoregen.__path__):
        name = f"scoregen.{module.name}"
        if not module.ispkg:
            alone.append(name)
            continue
        names = [
            f"{name}.{found.name}"
            for found in pkgutil.walk_packages([f"{scoregen.__path__[0]}/{module.name}"])
        ]
        site.pages[f"api/{module.name}.md"] = _page(name, names)
        entries.append({name: f"api/{module.name}.md"})
    site.pages["api/scoregen.md"] = _page("scoregen", alone)
    return {"API": [{"scoregen": "api/scoregen.md"}, *entries]}


def _page(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])


class ProjectDocstrings(griffe.Extension):
    """Lets mkdocstrings show docstrings as the rest of the site does."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Turn the docstring into Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
