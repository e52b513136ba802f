"""The prepare command: lossless, checked, atomic, one message on bad input."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scoregen.data.digits import load_digits
from scoregen.data.folder import load_images
from scoregen.data.prepare import main
from scoregen.data.stats import measure


@pytest.fixture
def pets(tmp_path: Path, photos: list, save: Callable) -> Path:
    """12 images in the sub-folders cat and dog."""
    for i, photo in enumerate(photos):
        save(tmp_path / f"pets/{'dog' if i % 3 else 'cat'}/{i:02d}.webp.png", photo)
    return tmp_path / "pets"


def read(path: Path, conditional: bool = True):  # type: ignore[no-untyped-def]
    return load_images(root=str(path), conditional=conditional, test_fraction=0.0)


def test_pixels_labels_and_order_are_kept(pets: Path, tmp_path: Path) -> None:
    assert main([str(pets), "--out", str(tmp_path / "out/a.zip")]) == 0
    before, after = read(pets), read(tmp_path / "out/a.zip")
    assert after.fingerprint == before.fingerprint
    assert torch.equal(after.label, before.label)
    assert after.class_names == ("cat", "dog")


def test_the_report_and_the_archive_hold_the_measured_statistics(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(pets), "--out", str(tmp_path / "a.zip")])
    stats, text = measure(read(tmp_path / "a.zip")), capsys.readouterr().out
    for part in (
        "12 images, 3 x 6 x 6",
        f"mean {stats.mean:.4f}",
        f"sigma_data {stats.std:.4f}",
        f"experiment=folder_edm data.root={tmp_path / 'a.zip'} sigma_data={stats.std:.2g}",
        "cat 4, dog 8",
    ):
        assert part in text
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        written = json.loads(archive.read("dataset.json"))["statistics"]
    assert written["std"] == stats.std
    assert written["class_counts"] == [4, 8]


def test_a_prepared_zip_and_a_published_set_can_be_prepared(pets: Path, tmp_path: Path) -> None:
    main([str(pets), "--out", str(tmp_path / "a.zip")])
    assert main([str(tmp_path / "a.zip"), "--out", str(tmp_path / "b.zip")]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert main(["digits", "--split", "test", "--out", str(tmp_path / "digits.zip")]) == 0
    assert read(tmp_path / "digits.zip").fingerprint == load_digits(split="test").fingerprint


def test_arrays_can_be_prepared(tmp_path: Path, photos: list) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack(photos), labels=np.arange(12) % 3)
    np.save(tmp_path / "b.npy", np.stack(photos))
    assert main([str(tmp_path / "b.npy"), "--out", str(tmp_path / "b.zip")]) == 0
    assert read(tmp_path / "b.zip", conditional=False).num_classes == 0
    assert main([str(tmp_path / "a.npz"), "--out", str(tmp_path / "a.zip")]) == 0
    data = read(tmp_path / "a.zip")
    assert torch.equal(data.x, torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2))
    assert data.label.tolist() == [i % 3 for i in range(12)]


def test_center_crop_takes_the_middle_square(tmp_path: Path, save: Callable) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 11, 3), np.uint8)
    save(tmp_path / "in/a.png", image)
    save(tmp_path / "in/b.png", image.transpose(1, 0, 2))
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "a.zip"), "--crop", "center"]) == 0
    x = read(tmp_path / "a.zip", conditional=False).x
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), image[:, 2:8])
    assert np.array_equal(x[1].permute(2, 1, 0).numpy(), image[:, 2:8])


def test_resizing_keeps_constant_images_and_gives_the_size(tmp_path: Path, save: Callable) -> None:
    save(tmp_path / "in/a.png", np.full((40, 40, 3), 77, np.uint8))
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "a.zip"), "--resolution", "16"]) == 0
    assert torch.equal(read(tmp_path / "a.zip", False).x, torch.full((1, 3, 16, 16), 77, dtype=torch.uint8))


def test_rgb_and_grey_make_mixed_sets_uniform(tmp_path: Path, save: Callable) -> None:
    transparent = np.zeros((4, 4, 4), np.uint8)
    save(tmp_path / "in/a.png", np.full((4, 4), 9, np.uint8))
    save(tmp_path / "in/b.png", transparent)
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "a.zip"), "--rgb"]) == 0
    x = read(tmp_path / "a.zip", False).x
    assert x.flatten(1).unique(dim=1).tolist() == [[9], [255]]
    assert x.shape == (2, 3, 4, 4)
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "b.zip"), "--grey"]) == 0
    assert read(tmp_path / "b.zip", False).x.flatten(1).unique(dim=1).tolist() == [[9], [255]]


def test_labels_can_come_from_a_file_or_be_left_out(pets: Path, tmp_path: Path) -> None:
    rows = [[f"cat/{i:02d}.webp.png", i % 2] for i in (9, 0)]
    (tmp_path / "mine.json").write_text(json.dumps({"labels": rows, "class_names": ["x", "y"]}))
    main([str(pets), "--out", str(tmp_path / "a.zip"), "--labels", str(tmp_path / "mine.json")])
    data = read(tmp_path / "a.zip")
    assert (data.label.tolist(), data.class_names) == ([1, 0], ("x", "y"))
    main([str(pets), "--out", str(tmp_path / "b.zip"), "--labels", "none"])
    assert read(tmp_path / "b.zip", False).fingerprint == read(pets, False).fingerprint


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda p: (p / "cat/00.webp.png").write_bytes(b"x"), [], "00.webp.png is not a readable image"),
        (lambda p: (p / "cat/a.png").write_bytes(b""), [], "a.png is not a readable image"),
        (lambda p: (p / "stray.png").write_bytes(b""), [], "stray.png lies beside"),
        (lambda p: None, ["--resolution", "0"], "--resolution 0"),
        (lambda p: None, ["--labels", "nowhere.json"], "nowhere.json"),
        (lambda p: [f.unlink() for f in p.rglob("*.png")], [], "no images"),
    ],
)
def test_bad_input_exits_with_2_and_leaves_nothing(
    pets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    arguments: list[str],
    message: str,
) -> None:
    spoil(pets)
    assert main([str(pets), "--out", str(tmp_path / "a.zip"), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


@pytest.mark.parametrize(
    ("shape", "hint"), [((6, 6), "--rgb or --grey"), ((6, 9, 3), "--crop center --resolution N")]
)
def test_mixed_images_are_refused_with_the_way_out(
    pets: Path, tmp_path: Path, save: Callable, capsys: pytest.CaptureFixture[str], shape: tuple, hint: str
) -> None:
    save(pets / "dog/99.png", np.zeros(shape, np.uint8))
    assert main([str(pets), "--out", str(tmp_path / "a.zip")]) == 2
    assert "99.png" in (message := capsys.readouterr().err)
    assert hint in message


def test_nothing_is_overwritten(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_text("precious")
    assert main([str(pets), "--out", str(tmp_path / "a.zip")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "a.zip").read_text() == "precious"


def test_help_does_not_import_torch() -> None:
    run = "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    code = f"import sys\nfrom scoregen.data.prepare import main\n{run}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--resolution" in result.stdout
