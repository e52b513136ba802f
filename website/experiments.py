"""The experiments of conf/experiment/, and what each chooses."""

from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from scoregen import config
from website.docstrings import remarks
from website.links import ROOT

if TYPE_CHECKING:
    from website.site import Site


def add(site: "Site") -> dict[str, str]:
    """Add the page of all experiments; its navigation."""
    parts = [
        "# Experiments",
        "Each is one file of `conf/experiment/`; an option on the command line overrides it.",
        *(_entry(name) for name in config.groups()["experiment"]),
    ]
    site.pages["experiments.md"] = "\n\n".join(parts)
    return {"Experiments": "experiments.md"}


def _entry(name: str) -> str:
    text = (ROOT / f"conf/experiment/{name}.yaml").read_text()
    head = [line.removeprefix("#").strip() for line in text.split("\n") if line.startswith("#")]
    comment = remarks("\n".join(line for line in head if line != "@package _global_"))
    chosen = ", ".join(_link(group, choice) for group, choice in overrides(name).items())
    return f"## {name}\n\n{comment}\n\n```\n{command(name)}\n```\n\n{chosen}"


def _link(group: str, choice: str) -> str:
    from website.methods import GROUPS

    if group in GROUPS and choice in config.groups()[group]:
        return f"{group} [`{choice}`](methods/{group}/{choice}.md)"
    return f"{group} `{choice}`"


@cache
def overrides(name: str) -> dict[str, str]:
    """Group to choice, where an experiment departs from conf/train.yaml."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/experiment/{name}.yaml"))
    entries = [entry for entry in plain.get("defaults", []) if isinstance(entry, dict)]
    return {
        key.removeprefix("override ").strip("/ "): choice
        for entry in entries
        for key, choice in entry.items()
    }


@cache
def using(group: str, choice: str) -> list[str]:
    """The experiments with that choice, the defaults of conf/train.yaml aside."""
    return [name for name in config.groups()["experiment"] if overrides(name).get(group) == choice]


@cache
def choices_of(command: str) -> dict[str, str]:
    """What a command of train.py chooses: its own words over its experiment's over the defaults."""
    words = dict(word.split("=", 1) for word in command.split() if "=" in word)
    plain: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/train.yaml"), resolve=False)
    defaults = {k: v for entry in plain["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    experiment = words.get("experiment", defaults["experiment"])
    return defaults | overrides(experiment) | words


def command(name: str) -> str:
    """How an experiment is started."""
    teacher = " teacher=runs/NAME" if overrides(name).get("distiller") else ""
    return f"python train.py experiment={name}{teacher}"
