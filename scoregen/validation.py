"""Check a configuration against the signatures of the constructors that it names, before anything is built.

Names, simple types, `Literal` choices and declared ranges (`scoregen.ranges`) are checked, and the few rules
that span several keys. All problems are reported together, each with its key, its value and what is allowed.
"""

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from scoregen.config import PRESETS, Problem, flatten, groups, locate, suggest, to_container
from scoregen.ranges import NonNegativeInt, Positive, Range

# Arguments that the framework fills in when it builds a group; they cannot be configured.
FILLED_IN: dict[str, frozenset[str]] = {
    "data": frozenset({"split"}),
    "network": frozenset({"resolution", "channels", "num_classes", "augment_dim", "out_channels"}),
    "optimizer": frozenset({"params"}),
    "logger": frozenset({"run_dir"}),
    "distiller": frozenset({"networks"}),
}
COLLECTIONS = ("hooks",)  # groups of named nodes
OPTIONAL = frozenset({*PRESETS, "distiller", "codec", "launcher"})  # groups of which there may be no choice


class RunOptions(NamedTuple):
    """The scalars at the top of a configuration."""

    name: str
    run_dir: str
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sigma_data: Positive = 0.5
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    init: str | None = None
    teacher: str | None = None
    teacher_precision: Literal["fp32", "bf16"] = "bf16"
    dry: bool = False


def validate(cfg: DictConfig, processes: int = 1) -> list[Problem]:
    """Everything that is wrong with a composed configuration; nothing is built."""
    try:
        plain = to_container(cfg)
    except OmegaConfBaseException as error:
        return [Problem("interpolation", str(error).splitlines()[0])]
    problems = _check_root(plain)
    for group, node in plain.items():
        if group in COLLECTIONS and isinstance(node, dict):
            for name, entry in node.items():
                problems += _check_entry(group, name, entry, sorted(node))
        elif isinstance(node, dict) and group in (*groups(), "trainer"):
            problems += _check_node(node, group, FILLED_IN.get(group, frozenset()))
    if problems:
        return problems
    return [*_check_batch(plain["trainer"], processes), *_check_distillation(plain), *_check_sharding(plain)]


def check_choice(cfg: DictConfig, group: str) -> list[Problem]:
    """Everything that is wrong with the node of one group."""
    return _check_node(to_container(cfg), group, FILLED_IN.get(group, frozenset()))


def _check_root(plain: Mapping[str, Any]) -> list[Problem]:
    """Top-level keys: the run's scalars and the groups, no other; the scalars have their types."""
    hints = get_type_hints(RunOptions, include_extras=True)
    choices = groups()
    needed = {*choices, "trainer"} - OPTIONAL
    allowed = sorted({*hints, *needed, *OPTIONAL})
    problems = [
        Problem(f"{group}=null", f"is needed; allowed: {', '.join(choices.get(group, ['a group of keys']))}")
        for group in sorted(needed)
        if plain.get(group) is None
    ]
    for key, value in plain.items():
        if key in hints:
            problems += _check_type(value, hints[key], key)
        elif key not in allowed:
            problems.append(Problem(f"{key}={value}", f"unknown key; {_suggest_key(key, plain, allowed)}"))
        elif not isinstance(value, Mapping | NoneType) and key not in PRESETS:
            problems.append(
                Problem(f"{key}={value}", "a group of keys, not a value; choose a file or set a key")
            )
    return problems


def _check_entry(group: str, name: str, entry: Any, names: Sequence[str]) -> list[Problem]:
    """One named node of a collection such as `hooks.checkpoint`."""
    path = f"{group}.{name}"
    if entry is None:
        return []
    if not isinstance(entry, Mapping):
        return [Problem(f"{path}={entry}", "a group of keys, not a value")]
    if "_target_" not in entry:
        others = [other for other in names if other != name]
        return [Problem(f"{path}={dict(entry)}", f"no such {group} entry; {suggest(name, others)}")]
    return _check_node(entry, path, FILLED_IN.get(group, frozenset()))


def _check_node(node: Mapping[str, Any], path: str, filled_in: frozenset[str]) -> list[Problem]:
    """The keys of a node with `_target_` against the signature it names, and its nested nodes."""
    if "_target_" not in node:
        choices = groups().get(path)
        advice = f"; choose one first with {path}={' or '.join(choices)}" if choices else ""
        return [Problem(f"{path}={dict(node)}", f"has no _target_ that says what to build{advice}")]
    try:
        target = locate(node["_target_"])
        parameters, hints = _signature(target)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        return [Problem(f"{path}._target_={node['_target_']}", f"cannot be imported: {error}")]
    problems = []
    for key, value in node.items():
        if key == "_target_":
            continue
        where = f"{path}.{key}"
        if key in filled_in:
            problems.append(Problem(f"{where}={value}", "is set by the framework, not by the configuration"))
        elif key not in parameters:
            allowed = [name for name in parameters if name not in filled_in]
            advice = f"unknown key; {_suggest_key(key, node, allowed)}"
            problems.append(Problem(f"{where}={value}", advice))
        elif isinstance(value, Mapping) and "_target_" in value:
            problems += _check_node(value, where, frozenset())
        else:
            problems += _check_type(value, hints.get(key, Any), where)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in node and key not in filled_in:
            problems.append(
                Problem(f"{path}.{key}", f"missing; {_describe(hints.get(key, Any))} is expected")
            )
    return problems


def _suggest_key(key: str, node: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """Near names among the allowed keys, or failing that a deeper key of the same last name."""
    deeper = [full for full in flatten(node) if full.split(".")[-1] == key and full != key]
    return f"did you mean {deeper[0]}?" if deeper else suggest(key, allowed)


def _signature(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The keyword parameters of a class or function and their type hints with the declared ranges."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in kinds}
    source = target.__init__ if inspect.isclass(target) else target
    try:
        return parameters, get_type_hints(source, include_extras=True)
    except NameError:  # names that exist for type checkers only: such hints are not checked
        return parameters, {}


def describe_arguments(target: Any) -> dict[str, str]:
    """What each keyword argument of a class or function may be, in words; without those of no known type."""
    return {name: _describe(hint) for name, hint in _signature(target)[1].items()}


def _check_type(value: Any, hint: Any, path: str) -> list[Problem]:
    if _fits(value, hint):
        return []
    return [Problem(f"{path}={value}", f"{_describe(hint)} is expected")]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type hint; hints beyond simple types are taken to fit."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        return _fits(value, args[0]) and all(value in limits for limits in ranges)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (None, NoneType):
        return value is None
    if origin in (tuple, list, Sequence):
        return _fits_sequence(value, origin, args)
    return not isinstance(value, str | int | float | NoneType) or hint is Any or not inspect.isclass(hint)


def _fits_sequence(value: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and args and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(_fits, value, args))
    return not args or all(_fits(item, args[0]) for item in value)


def _describe(hint: Any) -> str:
    """A type hint in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = " and ".join(str(extra) for extra in args[1:] if isinstance(extra, Range))
        return f"{_describe(args[0])} {limits}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_describe, args)))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list, Sequence):
        items = [_describe(arg) for arg in args if arg is not Ellipsis]
        count = f" of {len(items)}" if origin is tuple and Ellipsis not in args else ""
        return f"a list{count}, each item {' or '.join(dict.fromkeys(items))}"
    words = {float: "a number", int: "an integer", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _check_batch(trainer: Mapping[str, Any], processes: int) -> list[Problem]:
    """The global batch divides into processes, and each share into micro-batches."""
    batch, micro = trainer["batch"], trainer.get("microbatch")
    if batch % processes:
        advice = f"must be a multiple of the {processes} processes"
        return [Problem(f"trainer.batch={batch}", advice)]
    share = batch // processes
    if micro is not None and (micro > share or share % micro):
        fits = [size for size in range(1, share + 1) if share % size == 0]
        advice = f"must divide the {share} images of each process (trainer.batch={batch}, {processes} process"
        return [Problem(f"trainer.microbatch={micro}", f"{advice}{'es' * (processes > 1)}); allowed: {fits}")]
    return []


def _check_distillation(plain: Mapping[str, Any]) -> list[Problem]:
    """A teacher goes with a distiller, and half precision with neither."""
    if plain.get("distiller") is None:
        if plain.get("teacher") is None:
            return []
        advice = "only a distiller has a teacher; choose one, or an experiment that does"
        return [Problem(f"teacher={plain['teacher']}", f"{advice}: distiller={groups()['distiller'][0]}")]
    if plain.get("init") is not None:
        return [Problem(f"init={plain['init']}", "a student starts from its teacher; leave it out")]
    if plain["precision"] == "fp16":
        advice = "distillation diverges: small differences of scores leave its range; use bf16 or fp32"
        return [Problem("precision=fp16", advice)]
    return []


def _check_sharding(plain: Mapping[str, Any]) -> list[Problem]:
    """What is sharded is one network, and not compiled."""
    if plain.get("parallel") != "fsdp":
        return []
    problems = []
    if plain.get("distiller") is not None:
        problems.append(Problem("parallel=fsdp", "a distillation trains several networks; use parallel=ddp"))
    if compile := plain["trainer"].get("compile"):
        advice = "compiled networks are not sharded; set trainer.compile=false, or parallel=ddp"
        problems.append(Problem(f"trainer.compile={compile}", advice))
    return problems
