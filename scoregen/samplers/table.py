"""What the samplers are, in one table."""

from dataclasses import replace
from typing import NamedTuple

from scoregen.errors import UserError
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
from scoregen.samplers.closed_form import ClosedFormSampler
from scoregen.samplers.teleport import TeleportSampler

# Made for training data or moments of them, and so not built from their defaults like the registered ones.
OF_DATA: dict[str, type[Sampler]] = {"closed_form": ClosedFormSampler, "teleport": TeleportSampler}


class SamplerRow(NamedTuple):
    """One sampler with its default settings."""

    name: str
    order: float | None  # of convergence; None where noise is added or it does not apply
    nfe: int  # evaluations of the denoiser a sample
    deterministic: bool
    reference: str


def sampler_table(steps: int = 18) -> list[SamplerRow]:
    """A row for each sampler, with what `steps` steps cost (or the number that it insists on)."""
    rows = []
    for name, kind in (SAMPLERS | OF_DATA).items():
        sampler = _with_steps(kind(), steps)
        rows.append(SamplerRow(name, sampler.order, sampler.nfe(), sampler.deterministic, sampler.reference))
    return rows


def format_table(rows: list[SamplerRow]) -> str:
    """The table in Markdown."""
    lines = ["| name | order | NFE | deterministic | reference |", "|---|--:|--:|---|---|"]
    for row in rows:
        order = "-" if row.order is None else f"{row.order:g}"
        yes = "yes" if row.deterministic else "no"
        lines.append(f"| `{row.name}` | {order} | {row.nfe} | {yes} | {row.reference} |")
    return "\n".join(lines)


def _with_steps(sampler: Sampler, steps: int) -> Sampler:
    try:
        return replace(sampler, steps=steps)
    except UserError:  # one_step takes 1
        return sampler
