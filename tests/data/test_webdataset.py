"""WebDataset shards: patterns, the index, and the refusal of bad shards."""

import tarfile
from pathlib import Path

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.webdataset import find_shards, load_shards
from scoregen.errors import UserError
from tests.data.containers import Files, members, write_tar

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{10..08}.tar", ["a-10.tar", "a-09.tar", "a-08.tar"]),
        ("{a,b}-{1..2}.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
        ("a-*.tar", ["a-08.tar", "a-09.tar", "a-1.tar", "a-10.tar", "a-11.tar", "a-2.tar"]),
        ("a-1.tar", ["a-1.tar"]),
        (None, ["a-08.tar", "a-09.tar", "a-1.tar", "a-10.tar", "a-11.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
    ],
)
def test_patterns_name_shards_as_in_a_shell(tmp_path: Path, pattern: str | None, names: list[str]) -> None:
    root = tmp_path / "[odd] name"
    root.mkdir()
    for name in ("a-1", "a-2", "a-08", "a-09", "a-10", "a-11", "b-1", "b-2"):
        (root / f"{name}.tar").touch()
    assert [path.name for path in find_shards(pattern, str(root))] == names


def test_shards_are_indexed_once_and_again_when_they_change(
    tmp_path: Path, files: Files, expected: ArrayDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", members(files))

    def labels() -> list[int]:
        data = load_shards(root=str(path), conditional=True, test_fraction=0.0, cache_gb=0.0)
        assert torch.equal(data.fetch(torch.arange(12)).x.sort(0).values, pixels)
        return data.fetch(torch.arange(12)).label.tolist()  # type: ignore[union-attr]

    pixels = expected.x.sort(0).values
    first = labels()
    assert len(list((cache / "scoregen/shards").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_: pytest.fail("it was read again"))
        assert labels() == first
    write_tar(path, members(files[::-1]))
    assert labels() == first[::-1]
    for kept in (cache / "scoregen/shards").iterdir():
        kept.write_bytes(b"[")
    assert labels() == first[::-1]


def test_held_out_shards_have_the_classes_of_training(tmp_path: Path, files: Files) -> None:
    write_tar(tmp_path / "train.tar", members(files))
    write_tar(tmp_path / "test.tar", members(files[:4]))
    test = load_shards(
        root=str(tmp_path), path="train.tar", test_path="test.tar", split="test", conditional=True
    )
    assert (len(test), test.num_classes) == (4, 3)


PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ({"a.png": PNG, "a.jpg": PNG}, {}, "sample a has png, jpg, not one image; .*data.image_key"),
        ({"a.txt": b"x"}, {}, "sample a has txt, not one image"),
        ({"a.png": PNG}, {"image_key": "jpg"}, "sample a has png, not data.image_key=jpg"),
        (
            {"a.png": PNG},
            {"conditional": True},
            r"has png, no data\.class_key=cls; .*conditional=false",
        ),
        ({"a.png": PNG, "a.cls": b"cat"}, {"conditional": True}, r"sample a: the class is b'cat'"),
        ({"a.png": PNG, "a.cls": b"-1"}, {"conditional": True}, "sample 0 has class -1, allowed are 0 to"),
        ({"a.png": PNG, "a.cls": b"9" * 20}, {"conditional": True}, "has class 9{20}, allowed are 0 to"),
        ({"a.png": PNG}, {}, r"a\.png is not a readable image"),
        ({"a.png": PNG, "a.PNG": PNG}, {}, r"holds a\.PNG twice"),
        ({"readme": b"x"}, {}, "holds no samples"),
        (None, {}, "is not a readable tar file .* plain .tar"),
        ({"a.png": PNG}, {"path": "b.tar"}, r"there is no shard b\.tar"),
        ({"a.png": PNG}, {"path": "https://host/a.tar"}, "download them first"),
        ({"a.png": PNG}, {"path": "pipe:cat a.tar"}, "download them first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_shards_are_refused_by_name(
    tmp_path: Path, content: dict[str, bytes] | None, options: dict, said: str
) -> None:
    if content is None:
        (tmp_path / "a.tar").write_bytes(b"\x1f\x8b compressed")
    else:
        write_tar(tmp_path / "a.tar", content)
    with pytest.raises(UserError, match=said):
        load_shards(**{"root": str(tmp_path), "path": "a.tar", "test_fraction": 0.0, **options})


def test_a_shard_cut_off_between_two_samples_is_refused(tmp_path: Path, files: Files) -> None:
    path = write_tar(tmp_path / "a.tar", members(files))
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-2].offset
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(UserError, match=r"a\.tar has no end.*fetch it again"):
        load_shards(root=str(path))


def test_a_shard_that_was_cut_is_noticed(tmp_path: Path, files: Files) -> None:
    path = write_tar(tmp_path / "a.tar", members(files))
    data = load_shards(root=str(path), test_fraction=0.0, cache_gb=0.0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.tar ends within a\.tar/eel/11\.png: fetch it again"):
        data.fetch(torch.tensor([11]))
    with pytest.raises(UserError, match=r"a\.tar is not a readable tar file"):
        load_shards(root=str(path))
