"""Laws of `debug=overfit`: one batch, as it is, in every step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scoregen import config
from scoregen.data.base import ArrayDataset, first_samples
from scoregen.data.digits import load_digits
from scoregen.data.folder import load_images
from scoregen.errors import UserError
from scoregen.images import save_png
from scoregen.training.trainer import Trainer

Build = Callable[..., Trainer]


def test_every_step_sees_the_same_images(build: Build) -> None:
    trainer = build("debug=overfit")
    expected = load_digits().x[:16].flatten(1).sum(1).sort().values
    for nimg in (0, 16, 160):
        x = trainer.stream.batch(nimg, 16).x
        levels = ((x + 1) * 127.5).flatten(1).sum(1).sort().values
        torch.testing.assert_close(levels, expected.float(), rtol=0, atol=0.5)


def test_no_experiment_augments_it_or_drops_its_labels() -> None:
    for name in config.groups()["experiment"]:
        cfg, problems = config.compose([f"experiment={name}", "debug=overfit"])
        assert problems == []
        assert cfg.augment._target_.endswith("NoAugment")
        assert cfg.trainer.label_dropout == 0.0
        assert cfg.trainer.subset == cfg.trainer.batch
        assert cfg.run_dir == f"runs/debug/{name}_overfit"


def test_the_first_samples_are_the_same_of_files_and_in_memory(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(x):
        save_png(image, tmp_path / f"{i}.png")
    files = load_images(path=str(tmp_path), test_fraction=0.0, cache_gb=0.0)
    assert not isinstance(files, ArrayDataset)
    ours = first_samples(files, 4)
    assert torch.equal(ours.x, x[:4])
    assert torch.equal(ours.x, first_samples(ArrayDataset("x", x), 4).x)
    assert ours.num_classes == files.num_classes


def test_more_samples_than_there_are_are_refused(build: Build) -> None:
    with pytest.raises(UserError, match=r"trainer\.subset=5000: digits has only 1617 samples"):
        build("trainer.subset=5000")
