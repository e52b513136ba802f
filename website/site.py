"""The whole site as text: pages by their paths, what they link to besides, and the navigation."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from website import api, configuration, detection, experiments, guides, methods, metrics, notebooks
from website.links import ROOT

STATIC = {"iframe-worker.js": "javascripts/iframe-worker.js", "site.css": "stylesheets/site.css"}


@dataclass(frozen=True)
class Site:
    """Pages in Markdown and other files, by path, and mkdocs' navigation: lists of {title: page or list}."""

    pages: dict[str, str] = field(default_factory=dict)
    assets: dict[str, bytes] = field(default_factory=dict)
    nav: list[Any] = field(default_factory=list)


@cache
def build() -> Site:
    """Make every page."""
    site = Site()
    for name, place in STATIC.items():
        site.assets[place] = (ROOT / "website" / name).read_bytes()
    guided = guides.add(site)
    made = methods.add(site) + metrics.add(site) + detection.add(site)
    overview = {"Overview": methods.overview(site)}
    tutorials = notebooks.add(site)
    reference = [configuration.add(site), experiments.add(site), api.add(site)]
    site.nav.extend(
        [
            {"Start": guided.pop("Start")},
            *({title: entries} for title, entries in guided.items()),
            {"Methods": [overview, *made]},
            {"Tutorials": tutorials},
            {"Reference": reference},
        ]
    )
    return site
