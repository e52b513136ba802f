"""What a metric says: a number, and everything that it is a function of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scoregen.config import flatten


@dataclass(frozen=True)
class Score:
    """What a comparison of two summaries comes to.

    Args:
        value: the metric.
        n: generated images that it is a function of.
        spread: its standard deviation over subsets or splits, where it has any.
        floor: about what n real images score: what a perfect model would get.
        note: what a reader must know before quoting the number, or "".
        details: further numbers by name.
    """

    value: float
    n: int
    spread: float | None = None
    floor: float | None = None
    note: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One number and everything that it is a function of.

    Args:
        name: the metric's; where its bias depends on n and n is not the published one, `<metric>_<n>`.
        value, n, spread, floor, note, details: as in `Score`.
        extractor: its name, with `layer`, `extractor_sha256` of weights and configuration, and `resize`, its
            input rule.
        reference: name of the real data, with `reference_fingerprint` of its content, `reference_n` images
            and `reference_sha256` of the statistics. Empty, 0: none is needed, or the file does not say.
    """

    name: str
    value: float
    n: int
    extractor: str = ""
    extractor_sha256: str = ""
    resize: str = ""
    layer: str = ""
    reference: str = ""
    reference_fingerprint: str = ""
    reference_sha256: str = ""
    reference_n: int = 0
    spread: float | None = None
    floor: float | None = None
    note: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


Record = Mapping[str, Any]  # a result as metrics.json holds it, with sampler, evaluations and seeds

# What two numbers must share to be one quantity measured twice, and how a reader calls it.
_MUST_AGREE = {
    "name": "metric",
    "n": "number of images",
    "extractor_sha256": "extractor's weights",
    "layer": "features",
    "resize": "resize rule",
    "latents": "latents",
}
_MAY_DIFFER = {
    "run": "run",
    "images": "images",
    "weights_sha256": "weights",
    "sampler": "sampler",
    "nfe": "evaluations",
}


def protocol(record: Record) -> str:
    """The line under a number that says how it was measured."""
    parts = [f"n = {record['n']:,}"]
    if record.get("extractor"):
        layer = "" if record.get("layer") in (None, "", record["extractor"]) else f"/{record['layer']}"
        sha256 = record["extractor_sha256"][:8]
        parts += [f"{record['extractor']}{layer} {sha256}", f"resize: {record['resize']}"]
    if record.get("reference_sha256"):
        n = f" ({record['reference_n']:,} images)" if record.get("reference_n") else ""
        parts.append(f"reference {record.get('reference') or 'file'}{n} {record['reference_sha256'][:8]}")
    if "sampler" in record:
        parts.append(f"{record['sampler']['class']}, {record['nfe']} evaluations")
    parts += [f"{key} {record[key]}" for key in ("latents", "seeds", "images") if record.get(key)]
    return "; ".join(parts)


def obstacles(a: Record, b: Record) -> list[str]:
    """Why two numbers may not be compared; empty where they may."""
    found = [
        f"{title}: {_short(a.get(key))} against {_short(b.get(key))}"
        for key, title in _MUST_AGREE.items()
        if (a.get(key) or "") != (b.get(key) or "")
    ]
    if _reference(a) != _reference(b):
        found.append(f"reference: {_describe_reference(a)} against {_describe_reference(b)}")
    return found


def differences(a: Record, b: Record) -> list[str]:
    """What else differs between two numbers: what the comparison is about; of settings those that differ."""
    found = []
    for key, title in _MAY_DIFFER.items():
        before, after = flatten({title: a.get(key)}), flatten({title: b.get(key)})
        found += [
            f"{name}: {_short(before.get(name))} against {_short(after.get(name))}"
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]
    return found


def _reference(record: Record) -> tuple[Any, ...]:
    """What identifies the real images: their content and number, else the statistics themselves."""
    fingerprint = record.get("reference_fingerprint")
    return (
        (fingerprint, record.get("reference_n")) if fingerprint else (record.get("reference_sha256") or "",)
    )


def _describe_reference(record: Record) -> str:
    name, sha256 = record.get("reference") or "a file", record.get("reference_sha256") or ""
    return f"{name} {sha256[:8]}" if sha256 else "none"


def _short(value: Any) -> str:
    text = str(value if value not in (None, "") else "none")
    return text[:8] if len(text) == 64 else text
