"""What has been measured with a method: rows of the ledger whose command chose it."""

from collections.abc import Iterator
from functools import cache

from benchmarks.ledger import RECORDS, load_all, number
from benchmarks.record import Record
from website import experiments
from website.links import ROOT, rewrite
from website.markdown import table


def section(group: str, name: str, class_name: str) -> Iterator[str]:
    """Our results with a choice of `group`, or a sentence that there are none."""
    chosen = [
        (run, record)
        for run, record in _records().items()
        if experiments.choices_of(record.training.command).get(group) == name
        or (group == "sampler" and record.result["sampler"]["class"] == class_name)
    ]
    yield "## Our results"
    if not chosen:
        yield "None in the [ledger](../../results.md)."
        return
    rows = [
        (
            f"[{run}](../../results.md#{run})",
            record.data,
            f"{record.result['name']} {number(record.result)}",
            f"{record.result['n']:,}",
            f"{record.result['nfe']}",
            f"{record.training.images:,}",
        )
        for run, record in sorted(chosen, key=lambda item: (item[1].data, item[1].result["value"]))
    ]
    yield table(("run", "data", "value", "n", "NFE", "images"), rows)
    sentences = "\n".join(f"- {run}: {record.difference}" for run, record in chosen)
    yield rewrite(sentences, "docs/results.md", f"methods/{group}/{name}.md", {})


@cache
def _records() -> dict[str, Record]:
    return load_all(ROOT / RECORDS)
