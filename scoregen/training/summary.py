"""The last word of a finished run: `summary.json`, by which the other entries know that it is finished."""

import json
from pathlib import Path
from typing import Any

from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.training.checkpoint import CHECKPOINTS, latest_checkpoint
from scoregen.training.loggers import read_log
from scoregen.training.weights import weights_hash

SUMMARY = "summary.json"


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What `write_summary` wrote; UserError for a run that is not finished."""
    try:
        summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{run_dir} is not finished: it has no {SUMMARY}") from None
    return summary


def write_summary(run_dir: Path, nimg: int, stop_reason: str | None) -> None:
    """Write what was trained, where its weights are, and the last value of everything in the log."""
    found = latest_checkpoint(run_dir / CHECKPOINTS)
    assert found is not None, "a run is saved before it is summed up"
    last: dict[str, Any] = {}
    for row in read_log(run_dir):
        last |= row
    weights = found.path / "ema.safetensors"
    summary = {
        "nimg": nimg,
        "stop_reason": stop_reason,
        "weights": str(weights.relative_to(run_dir)),
        "weights_sha256": weights_hash(weights),
        "last": last,
    }
    write_whole(run_dir / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
