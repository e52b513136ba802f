"""Folders and zips of images: order, labels, splits, and the refusal of bad files."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoregen.data.folder import ImageFiles, load_images
from scoregen.errors import UserError


def chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.fixture
def classes(tmp_path: Path, photos: list, save: Callable) -> Path:
    """12 images in the sub-folders cat and dog."""
    for i, photo in enumerate(photos):
        save(tmp_path / f"pets/{'dog' if i % 3 else 'cat'}/{i:02d}.png", photo)
    (tmp_path / "pets/cat/.hidden.png").write_bytes(b"x")
    (tmp_path / "pets/notes.txt").write_text("not an image")
    return tmp_path / "pets"


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_sub_folders_are_classes_in_alphabetical_order(classes: Path, photos: list, cache_gb: float) -> None:
    data = load_images(root=str(classes), conditional=True, test_fraction=0.0, cache_gb=cache_gb)
    batch = data.fetch(torch.tensor([0, 3, 4]))
    assert data.on_demand == (cache_gb == 0)
    assert (data.name, data.num_classes, data.class_names) == ("pets", 2, ("cat", "dog"))
    assert torch.equal(batch.x, torch.stack([chw(photos[i]) for i in (0, 9, 1)]))
    assert batch.label is not None
    assert batch.label.tolist() == [0, 0, 1]
    assert load_images(root=str(classes)).num_classes == 0


def test_memory_and_demand_hold_the_same_images(classes: Path) -> None:
    cached, files = (load_images(root=str(classes), cache_gb=gb, conditional=True) for gb in (1.0, 0.0))
    every = torch.arange(len(cached))
    assert len(files) == len(cached) == 11
    assert torch.equal(files.fetch(every).x, cached.fetch(every).x)
    assert torch.equal(files.fetch(every).label, cached.fetch(every).label)  # type: ignore[arg-type]


def test_the_held_out_images_are_the_rest(classes: Path, photos: list) -> None:
    parts = [load_images(root=str(classes), split=s, test_fraction=0.25).x for s in ("train", "test")]
    assert [len(part) for part in parts] == [9, 3]
    both = {image.numpy().tobytes() for image in torch.cat(parts)}
    assert both == {chw(photo).contiguous().numpy().tobytes() for photo in photos}


@pytest.mark.parametrize("with_classes", [True, False])
def test_train_and_test_folders_are_the_split(
    tmp_path: Path, photos: list, save: Callable, with_classes: bool
) -> None:
    for i, photo in enumerate(photos):
        inner = f"{'ab'[i % 2]}/" if with_classes else ""
        save(tmp_path / f"{'train' if i < 8 else 'test'}/{inner}{i:02d}.png", photo)
    data = load_images(root=str(tmp_path), split="test", conditional=with_classes)
    order = [8, 10, 9, 11] if with_classes else [8, 9, 10, 11]
    assert torch.equal(data.x, torch.stack([chw(photos[i]) for i in order]))
    assert data.class_names == (("a", "b") if with_classes else ())
    assert len(load_images(root=str(tmp_path), split="train")) == 8


def test_dataset_json_gives_order_labels_and_names(
    tmp_path: Path, photos: list, save_zip: Callable[..., Path]
) -> None:
    images = {f"x/{i}.png": photo for i, photo in enumerate(photos)}
    rows = [[f"x/{i}.png", i % 2] for i in reversed(range(12))]
    path = save_zip(tmp_path / "set.zip", images, {"labels": rows, "class_names": ["even", "odd", "none"]})
    data = load_images(root=str(path), conditional=True, test_fraction=0.0)
    assert torch.equal(data.x, torch.stack([chw(photo) for photo in reversed(photos)]))
    assert data.label is not None
    assert data.label.tolist() == [1, 0] * 6
    assert data.num_classes == 3


def test_null_labels_mean_none(tmp_path: Path, photos: list, save_zip: Callable[..., Path]) -> None:
    path = save_zip(tmp_path / "a.zip", {f"00000/{i}.png": p for i, p in enumerate(photos)}, {"labels": None})
    assert load_images(root=str(path)).num_classes == 0
    with pytest.raises(UserError, match=r"no classes.*data\.conditional=false"):
        load_images(root=str(path), conditional=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"labels": [["0.png", 0], ["9.png", 1]]}, r"9\.png, which is not there"),
        ({"labels": [["0.png", 0], ["0.png", 1]]}, r"0\.png twice"),
        ({"labels": [["0.png", 0], ["1.png", 2]], "class_names": ["a", "b"]}, r"1\.png has label 2.*0 to 1"),
        ({"labels": [["0.png", -1]]}, "label -1"),
        ({"labels": [["0.png", 0.5]]}, r"0\.5"),
        ({"labels": [["0.png", True]]}, "True"),
        ({"labels": [["0.png", 10**9]]}, "label 1000000000, allowed are 0 to 99999"),
        ({"labels": 5}, "labels must be a list"),
        ({"labels": [["0.png", 0]], "class_names": "cat"}, "class_names must be a list"),
        ({"labels": []}, "lists no images"),
        ({"label": []}, "must be"),
        ([], "must be"),
    ],
)
def test_wrong_labels_are_refused(
    tmp_path: Path, photos: list, save_zip: Callable[..., Path], labels: object, message: str
) -> None:
    path = save_zip(tmp_path / "a.zip", {"0.png": photos[0], "1.png": photos[1]}, labels)
    with pytest.raises(UserError, match=message):
        load_images(root=str(path), conditional=True)


def test_broken_json_is_refused(tmp_path: Path, photos: list, save: Callable) -> None:
    save(tmp_path / "0.png", photos[0])
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_images(root=str(tmp_path))


def test_images_beside_sub_folders_are_refused(classes: Path, photos: list, save: Callable) -> None:
    save(classes / "stray.png", photos[0])
    with pytest.raises(UserError, match=r"stray\.png lies beside sub-folders"):
        load_images(root=str(classes))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n broken"])
@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_an_unreadable_image_is_named(classes: Path, content: bytes, cache_gb: float) -> None:
    (classes / "dog/05.png").write_bytes(content)

    def read_all() -> None:
        data = load_images(root=str(classes), test_fraction=0.0, cache_gb=cache_gb)
        data.fetch(torch.arange(len(data)))

    with pytest.raises(UserError, match=r"dog/05\.png is not a readable image"):
        read_all()


def test_a_truncated_image_and_a_flipped_bit_are_noticed(classes: Path) -> None:
    path = classes / "dog/05.png"
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:-30], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"dog/05\.png"):
            load_images(root=str(classes), test_fraction=0.0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((6, 6), r"1 x 6 x 6 .*3 x 6 x 6.*--rgb"), ((5, 6, 3), r"3 x 5 x 6 .*3 x 6 x 6.*--resolution")],
)
def test_another_shape_is_refused_with_the_way_out(
    classes: Path, save: Callable, shape: tuple[int, ...], message: str
) -> None:
    save(classes / "dog/99.png", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=rf"99\.png is {message}") as error:
        load_images(root=str(classes), test_fraction=0.0)
    assert "python -m scoregen.data.prepare" in str(error.value)


def test_transparency_is_refused_and_opaque_alpha_dropped(
    tmp_path: Path, photos: list, save: Callable
) -> None:
    alpha = np.full((6, 6, 1), 255, np.uint8)
    save(tmp_path / "a.png", np.concatenate([photos[0], alpha], 2))
    assert torch.equal(load_images(root=str(tmp_path), test_fraction=0.0).x[0], chw(photos[0]))
    alpha[0, 0] = 0
    save(tmp_path / "a.png", np.concatenate([photos[0], alpha], 2))
    with pytest.raises(UserError, match=r"a\.png has 4 channels"):
        load_images(root=str(tmp_path))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_grey_or_rgb(tmp_path: Path, photos: list, mode: str) -> None:
    image = Image.fromarray(photos[0]).convert(mode)
    image.save(tmp_path / "a.tif")
    expected = np.asarray(image.convert("L" if mode in "L1" else "RGB"))
    x = load_images(root=str(tmp_path), test_fraction=0.0).x[0].permute(1, 2, 0).squeeze(2)
    assert np.array_equal(x.numpy(), expected)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        load_images(root=str(tmp_path))


def test_an_extension_may_lie_and_photos_stand_upright(tmp_path: Path, photos: list) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    data = io.BytesIO()
    Image.fromarray(photos[0]).save(data, "PNG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    x = load_images(root=str(tmp_path), test_fraction=0.0).x[0]
    assert torch.equal(x, chw(photos[0]).rot90(-1, (1, 2)))


def test_empty_and_missing_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError, match="holds no images"):
        load_images(root=str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/nowhere"):
        load_images(root=str(tmp_path), path="nowhere")
    with pytest.raises(UserError, match=r"readme\.txt is not a readable zip"):
        load_images(root=str(tmp_path / "readme.txt"))


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "hf"), ("a.tar", "webdataset"), ("a.npz", "npz")])
def test_a_file_of_another_kind_names_what_reads_it(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name} is no folder or zip of images: .* data={kind}"):
        load_images(root=str(tmp_path / name))


def test_a_member_listed_twice_is_refused(
    tmp_path: Path, photos: list, save_zip: Callable[..., Path]
) -> None:
    path = save_zip(tmp_path / "a.zip", {"a.png": photos[0]})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", b"x")
    with pytest.raises(UserError, match=r"a\.png twice"):
        load_images(root=str(path))


def test_a_damaged_member_is_named(tmp_path: Path, photos: list, save_zip: Callable[..., Path]) -> None:
    path = save_zip(tmp_path / "a.zip", {f"{i}.png": photo for i, photo in enumerate(photos)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"3.png") + 60] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        load_images(root=str(path), test_fraction=0.0)


def test_the_fingerprint_of_files_follows_their_content(
    tmp_path: Path, photos: list, save_zip: Callable[..., Path]
) -> None:
    def mark(order: list[int]) -> str:
        path = save_zip(tmp_path / "a.zip", {f"{i:02d}.png": photos[j] for i, j in enumerate(order)})
        data = load_images(root=str(path), test_fraction=0.0, cache_gb=0.0)
        assert isinstance(data, ImageFiles)
        return data.fingerprint

    assert mark([0, 1, 2]) == mark([0, 1, 2])
    assert mark([0, 1, 2]) != mark([0, 2, 1])


def test_the_same_images_have_the_same_content_hash_in_every_container(
    tmp_path: Path, photos: list, save: Callable, save_zip: Callable[..., Path]
) -> None:
    for i, photo in enumerate(photos):
        save(tmp_path / f"a/{i:02d}.bmp", photo)
    zipped = save_zip(tmp_path / "b.zip", {f"{i:02d}.png": photo for i, photo in enumerate(photos)})
    prints = {load_images(root=str(p), test_fraction=0.0).fingerprint for p in (tmp_path / "a", zipped)}
    assert len(prints) == 1
