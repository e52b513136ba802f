"""The embedded default, trained to the end: are its samples digits? Minutes on 2 cores: `pytest -m slow`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoregen.cli import evaluate, sample, train
from scoregen.data.base import to_model_range
from scoregen.data.digits import load_digits

pytestmark = pytest.mark.slow
EARLY, END = "000000006400", "000000064000"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of `python train.py`, with its checkpoint at 10 % kept."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    torch.set_num_threads(2)
    keep = ["hooks.checkpoint.every=6400", "trainer.keep=99"]
    assert train.main([f"run_dir={folder}", "device=cpu", *keep]) == 0
    return folder


def fd(run_dir: Path, nimg: str) -> float:
    """fd_scatter of 1,617 samples of a checkpoint against the 1,617 training digits."""
    out = run_dir / f"{nimg}.json"
    weights = run_dir / "checkpoints" / nimg / "ema.safetensors"
    assert evaluate.main(["--run", str(weights), "--num", "1617", "--batch", "256", "--out", str(out)]) == 0
    return float(json.loads(out.read_text())[0]["value"])


def train_classifier(x: Tensor, label: Tensor) -> nn.Module:
    """An MLP of 97 % test accuracy on the real digits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    net.append(nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(1500):
        rows = torch.randint(len(x), (128,))
        noisy = x[rows] + 0.1 * torch.randn(128, 1, 8, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(noisy), label[rows]).backward()
        optimizer.step()
    return net


def test_the_samples_are_recognisable_digits_of_their_class(run_dir: Path, tmp_path: Path) -> None:
    data, test = load_digits(), load_digits(split="test")
    assert data.label is not None
    assert test.label is not None
    classifier = train_classifier(to_model_range(data.x), data.label)
    accuracy = (classifier(to_model_range(test.x)).argmax(1) == test.label).float().mean()
    assert accuracy > 0.95
    args = ["--run", str(run_dir), "--seeds", "0-999", "--batch", "250", "--out", str(tmp_path)]
    assert sample.main(args) == 0
    with np.load(tmp_path / "samples.npz") as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(file["labels"])
    confidence, predicted = classifier(to_model_range(images)).softmax(1).max(1)
    confident, as_asked = (confidence > 0.8).float().mean(), (predicted == labels).float().mean()
    print(f"confident {confident:.1%}, as asked {as_asked:.1%}")
    assert confident >= 0.85
    assert as_asked >= 0.85


def test_training_at_least_halves_the_distance_that_a_tenth_of_it_reaches(run_dir: Path) -> None:
    assert fd(run_dir, END) <= 0.5 * fd(run_dir, EARLY)
