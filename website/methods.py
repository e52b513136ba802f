"""A page for each sampler, objective, distiller and network: what it is, its use, what it has shown."""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scoregen import config
from scoregen.distillers import DISTILLERS
from scoregen.networks import NETWORKS
from scoregen.objectives import OBJECTIVES
from scoregen.samplers.base import Sampler
from scoregen.samplers.table import format_table, sampler_table
from website import choices, experiments, results
from website.docstrings import escape, headline, remarks, to_markdown
from website.guides import mentions, page_title
from website.markdown import table

if TYPE_CHECKING:
    from website.site import Site

# Group of conf/, title, the guide that compares its members, and how one is asked for.
GROUPS = {
    "sampler": ("Samplers", "samplers.md", "python sample.py --run runs/NAME --sampler {name}"),
    "objective": ("Objectives", "score_matching.md", "python train.py objective={name}"),
    "distiller": ("Distillers", "distillation.md", "python train.py distiller={name} teacher=runs/NAME"),
    "network": ("Networks", "configuration.md", "python train.py network={name}"),
}
REGISTRIES: dict[str, dict[str, Any]] = {
    "objective": OBJECTIVES,
    "distiller": DISTILLERS,
    "network": NETWORKS,
}


def add(site: "Site") -> list[Any]:
    """Add the pages; their navigation."""
    entries = []
    for group, (title, guide, _) in GROUPS.items():
        names = config.groups()[group]
        for name in names:
            site.pages[f"methods/{group}/{name}.md"] = page(group, name)
        site.pages[f"methods/{group}/index.md"] = index(group, title, guide, names)
        own = [{name: f"methods/{group}/{name}.md"} for name in names]
        entries.append({title: [f"methods/{group}/index.md", *own]})
    return entries


def overview(site: "Site") -> str:
    """Add the page that leads to the others; its path."""
    parts = [
        "# Methods",
        "Every method that is registered, from its own docstring, configuration and records.",
    ]
    for group, (title, *_) in GROUPS.items():
        links = [f"[`{name}`]({group}/{name}.md)" for name in config.groups()[group]]
        parts.append(f"## {title}\n\n[Compared]({group}/index.md): {', '.join(links)}.")
    for group, title in {"metric": "Metrics", "detector": "Detectors", "attack": "Attacks"}.items():
        names = [path.split("/")[2].removesuffix(".md") for path in site.pages if f"methods/{group}/" in path]
        links = [f"[`{name}`]({group}/{name}.md)" for name in names if name != "index"]
        parts.append(f"## {title}\n\n{', '.join(links)}.")
    site.pages["methods/index.md"] = "\n\n".join(parts)
    return "methods/index.md"


def index(group: str, title: str, guide: str, names: list[str]) -> str:
    """The members of a group in one table."""
    rows = [(f"[`{name}`]({name}.md)", _summary(group, name)) for name in names]
    parts = [
        f"# {title}",
        f"Compared in [{page_title(guide)}](../../{guide}).",
        table(("name", "what it is"), rows),
    ]
    if group == "sampler":
        parts += ["## Cost", "With 18 steps, or as many as it insists on.", format_table(sampler_table())]
    return "\n\n".join(parts)


def _summary(group: str, name: str) -> str:
    """The configuration's comment, else the docstring's first sentence."""
    choice = choices.read(group, name)
    return remarks(choice.comment) or headline(inspect.getdoc(choice.nodes[0].built) or "")


def page(group: str, name: str) -> str:
    """All that is known of one method."""
    choice, (_, guide, command) = choices.read(group, name), GROUPS[group]
    outer = choice.nodes[0]
    parts = [
        f"# {name}",
        remarks(choice.comment),
        to_markdown(inspect.getdoc(outer.built) or ""),
    ]
    parts += [
        *_facts(outer.built, choice),
        f"Code: {code(outer.built)}.",
        "## Use",
        f"```\n{command.format(name=name)}\n```",
    ]
    parts += _experiments(group, name)
    parts += [f"Compared with others in [{page_title(guide)}](../../{guide}).", "## Options", options(choice)]
    parts += _made_of(choice)
    parts += results.section(group, name, _class_name(outer.built))
    others = [other for other in mentions(name) if other != guide]
    if others:
        links = ", ".join(f"[{page_title(other)}](../../{other})" for other in others[:6])
        parts += ["## Read more", f"{links}."]
    return "\n\n".join(part for part in parts if part)


def _facts(built: Any, choice: choices.Choice) -> Iterator[str]:
    """Order, cost and kind of a sampler."""
    if not (inspect.isclass(built) and issubclass(built, Sampler)):
        return
    sampler, steps = built(), next((value for key, value, *_ in choice.options if key == "steps"), None)
    order = "none: noise is added, or it does not apply" if sampler.order is None else f"{sampler.order:g}"
    evaluations = sampler.nfe(int(steps)) if steps and steps.isdecimal() else sampler.nfe()
    facts = {
        "Order of accuracy": order,
        "Steps by default": steps or str(sampler.steps),
        "Network evaluations then": str(evaluations),
        "Deterministic, given the first noise": "yes" if sampler.deterministic else "no",
    }
    yield "**Properties**\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _experiments(group: str, name: str) -> Iterator[str]:
    """Ready-made experiments that use it."""
    used = experiments.using(group, name)
    if used:
        yield "Ready to run:\n\n```\n" + "\n".join(experiments.command(other) for other in used) + "\n```"


def options(choice: choices.Choice) -> str:
    """The table of a choice's options."""
    prefix = "" if choice.group == "sampler" else f"{choice.group}."
    rows = [
        (_breakable(prefix + path), f"`{value}`", escape(allowed), escape(comment))
        for path, value, allowed, comment in choice.options
    ]
    origin = f"Defaults of `{choice.file}`. "
    if choice.group == "sampler":
        origin += "`sample.py` and `evaluate.py` take them as `key=value` behind the sampler's name."
    else:
        origin += "`train.py` takes them as `key=value`; each is checked before anything is built."
    return f"{origin}\n\n{table(('option', 'default', 'allowed', 'meaning'), rows)}" if rows else "None."


def _made_of(choice: choices.Choice) -> Iterator[str]:
    """The docstrings of the parts that it names, and of what its own docstring refers to, each once."""
    outer = choice.nodes[0].built
    parts: dict[Any, str] = {}
    for node in choice.nodes[1:]:
        if node.target.startswith("scoregen."):
            parts.setdefault(node.built, f"`{node.path}`: {_class_name(node.built)}")
    for name in re.findall(r"`(\w+)`", inspect.getdoc(outer) or ""):
        referred = vars(sys.modules[outer.__module__]).get(name)
        if getattr(referred, "__module__", "").startswith("scoregen.") and referred is not outer:
            parts.setdefault(referred, f"`{name}`")
    if parts:
        yield "## Parts"
    for built, title in parts.items():
        yield f"### {title}"
        yield to_markdown(inspect.getdoc(built) or "")
        yield f"Code: {code(built)}."


def code(built: Any) -> str:
    """A link to the reference of a class or function, which mkdocstrings resolves."""
    return f"[`{_class_name(built)}`][{built.__module__}.{built.__qualname__}]"


def _class_name(built: Any) -> str:
    return str(getattr(built, "__name__", built))


def _breakable(path: str) -> str:
    """The name of an option, which may break behind its dots."""
    return f"<code>{path.replace('.', '.<wbr>').replace('_', '&#95;')}</code>"
