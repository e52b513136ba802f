"""The last word of a finished run: `summary.json`, by which the other entries know that it is finished."""

import json
from pathlib import Path
from typing import Any

from scoregen.training.checkpoint import latest_checkpoint
from scoregen.training.weights import weights_hash

SUMMARY = "summary.json"


def write_summary(run_dir: Path, nimg: int, stop_reason: str | None) -> None:
    """Write what was trained, where its weights are, and the last value of everything in the log."""
    found = latest_checkpoint(run_dir / "checkpoints")
    assert found is not None, "a run is saved before it is summed up"
    last: dict[str, Any] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        last |= json.loads(line)
    weights = found.path / "ema.safetensors"
    summary = {
        "nimg": nimg,
        "stop_reason": stop_reason,
        "weights": str(weights.relative_to(run_dir)),
        "weights_sha256": weights_hash(weights),
        "last": last,
    }
    (run_dir / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
