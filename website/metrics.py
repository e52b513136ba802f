"""A page for each metric, from its registration and the docstring of what it computes."""

import inspect
from typing import TYPE_CHECKING, Any

from scoregen.evaluation.metrics import METRICS, Metric
from website import results
from website.docstrings import headline, to_markdown
from website.guides import mentions, page_title
from website.markdown import table
from website.methods import code

if TYPE_CHECKING:
    from website.site import Site


def add(site: "Site") -> list[Any]:
    """Add the pages; their navigation."""
    for name, metric in METRICS.items():
        site.pages[f"methods/metric/{name}.md"] = page(name, metric)
    rows = [
        (f"[`{name}`]({name}.md)", f"`{m.extractor}`", headline(_doc(m.compare)))
        for name, m in METRICS.items()
    ]
    parts = ["# Metrics", "Explained in [Evaluation](../../evaluation.md)."]
    site.pages["methods/metric/index.md"] = "\n\n".join(
        [*parts, table(("name", "features", "what it is"), rows)]
    )
    own = [{name: f"methods/metric/{name}.md"} for name in METRICS]
    return [{"Metrics": ["methods/metric/index.md", *own]}]


def page(name: str, metric: Metric) -> str:
    """All that is known of one metric."""
    published = (
        f"{metric.published_n:,} images; at n others it is called `{name}_n`" if metric.published_n else ""
    )
    facts = {
        "Features": f"`{metric.extractor}`" + (f", layer {metric.layer}" if metric.layer else ""),
        "Real images": "needed" if metric.real else "not needed",
        "Least number of images": f"{metric.least:,}",
        "Published at": published or "any number of images",
        "Takes the images for independent draws": "yes" if metric.extrapolates else "no",
    }
    command = f"python evaluate.py --run runs/NAME --metrics {name}"
    parts = [
        f"# {name}",
        to_markdown(_doc(metric.compare)),
        "**Properties**\n\n" + "\n".join(f"- {fact}: {value}" for fact, value in facts.items()),
        f"Code: {code(metric.compare)}.",
        f"## Use\n\n```\n{command}\n```",
        *results.section("metric", name, name),
    ]
    links = ", ".join(f"[{page_title(other)}](../../{other})" for other in mentions(name)[:6])
    return "\n\n".join([*parts, f"## Read more\n\n{links}." if links else ""])


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""
