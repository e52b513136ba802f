"""The golden loss curve: what the loop computes, so that no later change shifts it unseen."""

import json
from collections.abc import Callable

import pytest

from scoregen.training.trainer import Trainer

# Mean loss of each 32 images, then the last gradient norm: CPU, float32, seed 0.
GOLDEN = {
    (): [1.079357, 1.065826, 1.057807, 0.989275, 0.594727],
    ("augment=edm", "network.dropout=0.2", "trainer.label_dropout=0.3", "trainer.clip=0.5"): [
        1.055305,
        1.067169,
        0.984860,
        1.010873,
        0.540486,
    ],
    ("precond=vp", "objective=denoising_vp", "schedule=rampup", "schedule.rampup=64"): [
        0.999446,
        1.040101,
        0.959483,
        0.873556,
        1.944370,
    ],
    ("objective=denoising_uncertainty", "ema=power", "optimizer=adamw"): [
        1.282836,
        1.227738,
        1.233231,
        1.168492,
        0.716982,
    ],
}


@pytest.mark.parametrize("options", GOLDEN, ids=lambda options: options[0] if options else "default")
def test_the_loss_curve_is_golden(build: Callable[..., Trainer], options: tuple[str, ...]) -> None:
    trainer = build(*options)
    trainer.run()
    rows = [json.loads(line) for line in (trainer.run_dir / "log.jsonl").read_text().splitlines()]
    curve = [row["loss"] for row in rows] + [rows[-1]["grad_norm"]]
    assert curve == pytest.approx(GOLDEN[options], rel=2e-4)
