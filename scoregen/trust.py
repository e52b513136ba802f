"""Which code a configuration from outside may name: a weights file is data, and must not choose what runs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from scoregen.config import choice_files, conf_dir, locate, own_conf_dir
from scoregen.errors import UserError

# What is built when a model is read or measured; all else in the configuration of its weights made them.
OF_MODEL = ("network", "precond", "codec", "data", "sampler", "logger")


def refuse_foreign(cfg: DictConfig, source: str, parts: Iterable[str] = OF_MODEL) -> None:
    """UserError where a configuration from outside names code that conf/ does not and scoregen has not.

    A weights file is data: it must not choose what runs when it is read. By default only the parts of a model
    are looked at: by what it was trained does not matter where nothing of that is built.
    """
    known = _known_targets(conf_dir(), own_conf_dir())
    used = {target for part in parts for target in _targets(cfg.get(part))}
    foreign = sorted(target for target in used if target not in known and not _is_ours(target))
    if foreign:
        raise UserError(
            f"{source}: its configuration names {', '.join(foreign)}, which neither is a class of scoregen "
            "nor stands in conf/; a weights file may not run code. If it is yours, name it in a file of the "
            "folder conf where you stand, such as conf/network/mine.yaml"
        )


@cache
def _known_targets(package: Path, own: Path | None) -> frozenset[str]:
    """Everything that the files of the configuration folders name."""
    found: set[str] = set()
    for path in (path for choices in choice_files(package, own).values() for path in choices.values()):
        with suppress(YAMLError, OmegaConfBaseException, UnicodeDecodeError):  # a torn file names nothing
            found.update(_targets(OmegaConf.load(path)))
    return frozenset(found)


def _targets(node: Any) -> Iterator[str]:
    """Everything that `instantiate` would call."""
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node)
    if isinstance(node, Mapping):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)


def _is_ours(target: str) -> bool:
    """Whether it is a class of scoregen, or was one that has moved since."""
    if not target.startswith("scoregen."):
        return False
    try:
        found = locate(target)
    except (ImportError, AttributeError):
        return True
    return isinstance(found, type) and found.__module__.startswith("scoregen.")
