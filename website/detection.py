"""A page for each detector of unusual images and each attack, from their docstrings and settings."""

import inspect
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scoregen.detection.attacks import ATTACKS, Attack
from scoregen.detection.msma import DETECTORS
from website.docstrings import arguments, escape, to_markdown
from website.markdown import table
from website.methods import code

if TYPE_CHECKING:
    from website.site import Site

GUIDE = "Compared with others in [Detection](../../detection.md)."
FIT = "python -m scoregen.detection.msma fit --run runs/NAME --out NAME.msma"
ATTACK = "python -m scoregen.detection.eps score FILE --run runs/NAME --attacks {name} --epsilons 2,8"


def add(site: "Site") -> list[Any]:
    """Add the pages; their navigation."""
    for name, detector in DETECTORS.items():
        doc = to_markdown(inspect.getdoc(detector) or "")
        use = f"One of the detectors that are fitted together:\n\n```\n{FIT}\n```"
        site.pages[f"methods/detector/{name}.md"] = "\n\n".join(
            [f"# {name}", doc, f"Code: {code(detector)}.", f"## Use\n\n{use}", GUIDE]
        )
    for name in ATTACKS:
        site.pages[f"methods/attack/{name}.md"] = _attack(name)
    detectors = [{name: f"methods/detector/{name}.md"} for name in DETECTORS]
    return [{"Detectors": detectors}, {"Attacks": [{name: f"methods/attack/{name}.md"} for name in ATTACKS]}]


def _attack(name: str) -> str:
    """What all attacks do, and the settings of this one at epsilon = 1."""
    doc = inspect.getdoc(Attack) or ""
    said, made = arguments(doc), ATTACKS[name](1.0)
    rows = [
        (f"`{field.name}`", f"`{getattr(made, field.name)}`", escape(said.get(field.name, "")))
        for field in fields(Attack)
        if field.name != "epsilon"
    ]
    settings = table(("setting", "value", "meaning"), rows)
    use = f"## Use\n\n```\n{ATTACK.format(name=name)}\n```"
    parts = [
        f"# {name}",
        to_markdown(doc),
        f"Code: {code(Attack)}.",
        f"## Settings\n\n{settings}",
        use,
        GUIDE,
    ]
    return "\n\n".join(parts)
