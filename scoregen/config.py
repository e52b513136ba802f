"""Configuration: compose it from Hydra's groups, instantiate what it names, save it, compare two.

One choice is one file `conf/<group>/<choice>.yaml`; the groups are the registry, and files of a folder `conf`
where one stands add choices of one's own to those of the package. Group choices go through
Hydra's composition; single values (`trainer.batch=64`) are set afterwards, so that `=` and `,` in paths need
no quoting. Nothing below the entries reads a configuration: constructors take typed arguments.
"""

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from scoregen.errors import UserError

CONFIG = "config.yaml"  # in a run folder: what it is trained by

# Groups whose files are of no node: they override the others, the later the earlier.
PRESETS = ("experiment", "debug")

# A finished or interrupted run may be continued with another value of these.
MUTABLE = (
    *("name", "run_dir", "device", "deterministic", "dry", "data.root", "hooks", "logger", "sampler"),
    *("launcher", "parallel", "teacher", "trainer.total", "trainer.microbatch", "trainer.keep"),
    *("trainer.max_skipped", "trainer.workers", "trainer.checkpointing"),
    *("codec.path", "codec.subfolder", "codec.revision", "codec.batch"),
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration: what was given and what to do about it."""

    given: str
    advice: str

    def __str__(self) -> str:
        return f"  {self.given}: {self.advice}"


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one UserError that lists all the problems, or return where there are none."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{count} in the configuration:\n" + "\n".join(map(str, problems)))


def suggest(name: str, allowed: Sequence[str]) -> str:
    """The near name, if there is one, and what is allowed."""
    near = get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(allowed)) or 'nothing'}"


def conf_dir() -> Path:
    """The folder of the configuration groups: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    beside, inside = package.parent / "conf", package / "conf"
    return inside if inside.is_dir() else beside


def own_conf_dir() -> Path | None:
    """The folder `conf` where one stands, with choices of one's own; None where there is no other."""
    own = Path("conf").absolute()
    return own if own.is_dir() and not own.samefile(conf_dir()) else None


def groups() -> dict[str, list[str]]:
    """Every configuration group with its choices, those of one's own among them."""
    return {group: sorted(files) for group, files in choice_files(conf_dir(), own_conf_dir()).items()}


def choice_files(package: Path, own: Path | None) -> dict[str, dict[str, Path]]:
    """The file of every choice by group and name; where both folders have one, that of the package."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(package.glob("*/*.yaml")):
        found.setdefault(path.parent.name, {})[path.stem] = path
    for path in sorted(own.glob("*/*.yaml")) if own else []:
        found.get(path.parent.name, {}).setdefault(path.stem, path)  # other groups are of other programs
    return found


def _load_choice(group: str, name: str) -> DictConfig:
    """The content of a choice's file; UserError where one's own is torn, or hides behind another."""
    own = own_conf_dir()
    file = choice_files(conf_dir(), own)[group][name]
    if own and (same := own / group / file.name).exists() and same.read_bytes() != file.read_bytes():
        raise UserError(f"{same} has the name of a choice of the package: give it another")
    try:
        cfg = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {error}") from error
    assert isinstance(cfg, DictConfig)
    return cfg


def compose(overrides: Sequence[str]) -> tuple[DictConfig, list[Problem]]:
    """The configuration of `train.yaml` under `overrides`, and what was wrong with them.

    Choices that do not exist are left out, so that one call reports every mistake.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    choices, values, problems = _split(overrides, known=groups())
    for group, _, name in (choice.lstrip("+").partition("=") for choice in choices if "=" in choice):
        _load_choice(group, name)  # for what there is to say of its file
    own = str(own_conf_dir() or "").replace("'", r"\'")
    found = [f"hydra.searchpath=['file://{own}']"] if own else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = hydra_compose("train", overrides=[*found, *choices])
    OmegaConf.set_struct(cfg, False)
    return cfg, problems + _set_values(cfg, values)


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """All combinations of values parted by commas: `seed=0,1` is two runs, `x=[0,1]` is one."""
    return [list(run) for run in product(*map(_alternatives, overrides))]


def _alternatives(override: str) -> list[str]:
    """The overrides that `key=a,b` stands for; commas inside brackets and quotes do not part values."""
    key, _, text = override.partition("=")
    depth, values = 0, [""]
    for part in re.findall(r""""[^"]*"|'[^']*'|.""", text):  # quoted texts whole, else characters
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part, 0)
        if part == "," and depth == 0:
            values.append("")
        else:
            values[-1] += part
    return [f"{key}={value}" for value in values] if len(values) > 1 else [override]


def without(group: str, overrides: Sequence[str]) -> list[str]:
    """The overrides but those of a group, its choice and its values."""
    return [override for override in overrides if re.split(r"[.=]", override.lstrip("+"))[0] != group]


def choose(group: str, name: str, values: Sequence[str] = ()) -> tuple[DictConfig, list[Problem]]:
    """The file conf/<group>/<name>.yaml with `key=value` settings; UserError for an unknown choice."""
    choices = groups()[group]
    if name not in choices:
        refuse([Problem(f"{group}={name}", f"no such {group}; {suggest(name, choices)}")])
    return adjust(_load_choice(group, name), values)


def adjust(cfg: DictConfig, values: Sequence[str]) -> tuple[DictConfig, list[Problem]]:
    """A copy of `cfg` with `key=value` settings, and what was wrong with these."""
    cfg = cfg.copy()
    _, pairs, problems = _split(values, known={})
    return cfg, problems + _set_values(cfg, pairs)


def revise(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[Problem]]:
    """A copy of the configuration of a run, `key=value` set, the groups that may change chosen anew."""
    fixed = {group: names for group, names in groups().items() if group not in MUTABLE}
    free = {group: names for group, names in groups().items() if group in MUTABLE}
    choices, values, problems = _split(overrides, known=free)
    problems += [
        Problem(f"{key}={text}", "is as it was when the run began; start another run with it")
        for key, text in values
        if key in fixed
    ]
    cfg = cfg.copy()
    for group, _, name in (choice.lstrip("+").partition("=") for choice in choices):
        cfg[group] = _load_choice(group, name)
    return cfg, problems + _set_values(cfg, [pair for pair in values if pair[0] not in fixed])


def _set_values(cfg: DictConfig, values: Sequence[tuple[str, str]]) -> list[Problem]:
    problems = []
    given = [key for key, _ in values]
    for key, text in sorted(values, key=_targets_first):
        try:
            OmegaConf.update(cfg, key, _parse(text), merge=False, force_add=True)
            if key.rpartition(".")[2] == "_target_":
                _drop_unknown(cfg, key.rpartition(".")[0], given)
        except (OmegaConfBaseException, AttributeError, TypeError, ValueError) as error:
            problems.append(Problem(f"{key}={text}", f"cannot be set: {str(error).splitlines()[0]}"))
    return problems


def _targets_first(pair: tuple[str, str]) -> int:
    """What is to be built comes before its settings, outer nodes before inner ones."""
    key = pair[0]
    return key.count(".") if key.rpartition(".")[2] == "_target_" else sys.maxsize


def _drop_unknown(cfg: DictConfig, path: str, given: Sequence[str]) -> None:
    """Of a node whose class was exchanged, the settings that the new one does not take and nobody gave."""
    node = OmegaConf.select(cfg, path) if path else cfg
    try:
        taken = inspect.signature(locate(node["_target_"])).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return  # validation says what is wrong with it
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for key in set(node) - {"_target_", *taken}:
        full = f"{path}.{key}" if path else str(key)
        if not any(name == full or name.startswith(f"{full}.") for name in given):
            del node[key]


def _split(
    overrides: Sequence[str], known: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[tuple[str, str]], list[Problem]]:
    """Overrides as choices from the `known` groups, (key, value) pairs to set, and problems."""
    choices, values, problems = [], [], []
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        if not equals or not key:
            problems.append(
                Problem(override, "not understood; write key=value, for example trainer.batch=64")
            )
        elif key in PRESETS and text == "null":
            choices.append(f"~{key}")
        elif key in known and text not in known[key]:
            problems.append(Problem(override, f"no such {key}; {suggest(text, known[key])}"))
        elif key in known:
            choices.append(override)
        else:
            values.append((key, text))
    return choices, values, problems


def _parse(text: str) -> Any:
    """A value as YAML reads it; what is no YAML (a path with odd characters) is a string."""
    try:
        return OmegaConf.from_dotlist([f"value={text}"]).value
    except Exception:  # PyYAML and OmegaConf raise many kinds: whatever they cannot read is meant literally
        return text


def to_container(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain resolved dicts and lists."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def to_yaml(cfg: DictConfig) -> str:
    """The configuration, resolved, as YAML text; what `config.yaml` and the weights' metadata hold."""
    return str(OmegaConf.to_yaml(cfg, resolve=True))


def from_yaml(text: str, source: str) -> DictConfig:
    """The configuration in YAML text written by `to_yaml`; UserError, naming `source`, for any other text."""
    try:
        cfg = OmegaConf.create(text)
        if isinstance(cfg, DictConfig) and "trainer" in to_container(cfg):
            return cfg
    except (YAMLError, OmegaConfBaseException):
        pass
    raise UserError(f"{source} is damaged, or no configuration that train.py has written")


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested containers as {dotted key: leaf}."""
    if isinstance(node, Mapping) and node:
        parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: node}


def diff(old: DictConfig, new: DictConfig, ignore: Sequence[str] = ()) -> list[str]:
    """The keys in which two configurations differ, as readable lines; keys under `ignore` do not count."""
    before, after = flatten(to_container(old)), flatten(to_container(new))
    lines = []
    for key in sorted({*before, *after}):
        ignored = any(key == name or key.startswith(f"{name}.") for name in ignore)
        if not ignored and before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}")
    return lines


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build what a node with `_target_` names, innermost first; `arguments` are added at the outermost.

    Lists become tuples; a node without `_target_` becomes a dict. Raises UserError where a constructor
    refuses its values.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return tuple(instantiate(item) for item in node)
    if not isinstance(node, dict):
        return node
    built = {key: instantiate(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return built
    try:
        return locate(node["_target_"])(**built, **arguments)
    except UserError:
        raise
    except ValueError as error:  # so says a library's constructor that its arguments are wrong
        raise UserError(f"{node['_target_']}: {error}") from error


def locate(target: str) -> Any:
    """The class or function with the dotted name `target`; ImportError or AttributeError if there is none.

    Modules where one stands are found, too, as they are by `python script.py` of a script there.
    """
    from importlib import import_module

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)
