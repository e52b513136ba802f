"""Hugging Face data sets: columns, splits and classes, and the refusal of what is missing."""

import sys
from pathlib import Path

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.hub import load_hub
from scoregen.errors import UserError
from tests.data.containers import Files, table, write_folder, write_parquet

pytestmark = pytest.mark.usefixtures("cache")


def save_table(root: Path, **columns: list) -> Path:
    from datasets import Dataset

    Dataset.from_dict(columns).to_parquet(root / "a.parquet")
    return root / "a.parquet"


def test_classes_may_be_numbers_or_text(tmp_path: Path, files: Files) -> None:
    images = [{"bytes": content, "path": None} for _, content, _ in files]
    for column, values, names in (
        ("number", [i % 3 for i in range(12)], ("0", "1", "2")),
        ("text", ["xzy"[i % 3] for i in range(12)], ("x", "y", "z")),
    ):
        path = save_table(tmp_path, image=images, **{column: values})
        data = load_hub(root=str(path), label_column=column, conditional=True, test_fraction=0.0)
        label = data.fetch(torch.arange(12)).label
        assert label is not None
        assert [names[i] for i in label] == [str(value) for value in values]
        assert data.class_names == names


def test_images_may_be_bytes_or_files_of_their_own(
    tmp_path: Path, files: Files, expected: ArrayDataset
) -> None:
    write_folder(tmp_path, files)
    kinds = {
        "bytes": [content for _, content, _ in files],
        "file": [{"bytes": None, "path": str(tmp_path / "set" / name)} for name, *_ in files],
    }
    for name, column in kinds.items():
        data = load_hub(root=str(save_table(tmp_path, **{name: column})), test_fraction=0.0, cache_gb=0.0)
        assert torch.equal(data.fetch(torch.arange(12)).x, expected.x)
        assert len(data.fingerprint) == 64


def test_a_test_split_is_taken_where_there_is_one(tmp_path: Path, files: Files) -> None:
    from datasets import DatasetDict

    parts = {"train": table(files[:8]), "test": table(files[8:11]), "extra": table(files[11:])}
    DatasetDict(parts).save_to_disk(tmp_path / "set")

    def count(**options: str) -> int:
        return len(load_hub(root=str(tmp_path / "set"), test_fraction=0.4, **options))  # type: ignore[arg-type]

    assert (count(), count(split="test"), count(split="test", test_split="extra")) == (8, 3, 1)
    assert (count(train_split="test"), count(train_split="test", split="test")) == (2, 1)
    with pytest.raises(UserError, match=r"data\.test_split=validation: .*splits train, test, extra"):
        count(test_split="validation")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'scoregen\[hub\]'"):
        load_hub(root=".")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_column": "img"}, r"data\.image_column=img: .* no such column\. Columns: label .*picture"),
        ({"image_column": "label"}, r"data\.image_column=label holds no encoded images"),
        (
            {"label_column": "class", "conditional": True},
            r"label_column=class: .*columns: label, picture",
        ),
        ({"label_column": "picture", "conditional": True}, r"data\.label_column=picture is of type"),
        ({"train_split": "training"}, r"data\.train_split=training: .*has the splits train"),
        ({"path": "nobody/nothing"}, r"no folder or file here, and the hub does not give it"),
        ({"path": "nowhere/a.parquet"}, "the Hugging Face data set not found: looked for"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_table_lacks_is_said_with_what_it_has(
    tmp_path: Path, files: Files, options: dict, said: str
) -> None:
    write_parquet(tmp_path, files)
    with pytest.raises(UserError, match=said):
        load_hub(**{"root": str(tmp_path), "path": "set.parquet", **options})


def test_bad_rows_and_files_are_named(tmp_path: Path, files: Files) -> None:
    bad = files[0][1][:40]
    for image, said in (
        ({"bytes": bad, "path": None}, "train/1 is not a readable image"),
        ({"bytes": None, "path": "gone.png"}, r"train/1 refers to .*gone\.png, which cannot be read"),
        (None, "train/1 has no image"),
    ):
        path = save_table(tmp_path, image=[{"bytes": files[0][1], "path": None}, image])
        with pytest.raises(UserError, match=said):
            load_hub(root=str(path), test_fraction=0.0)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match=r"b\.parquet cannot be read as a Hugging Face data set"):
        load_hub(root=str(tmp_path / "b.parquet"))


def test_what_is_no_table_no_image_or_no_class_is_told_apart(tmp_path: Path, files: Files) -> None:
    (tmp_path / "photo.png").write_bytes(files[0][1])
    with pytest.raises(UserError, match=r"photo\.png cannot be read .* one of \.parquet, \.arrow"):
        load_hub(root=str(tmp_path / "photo.png"))
    path = save_table(tmp_path, text=["a", "b"])
    with pytest.raises(UserError, match=r"has no column of encoded images .*Columns: text \(string\)"):
        load_hub(root=str(path))
    for number in (-1, 10**12):
        path = save_table(tmp_path, image=[files[0][1]] * 2, label=[0, number])
        with pytest.raises(UserError, match=f"label_column=label: sample 1 has class {number}, allowed are"):
            load_hub(root=str(path), conditional=True)


def test_a_class_without_a_name_is_refused_with_its_row(tmp_path: Path, files: Files) -> None:
    hidden = [(name, content, -1) for name, content, _ in files]
    write_parquet(tmp_path, hidden)
    for cache_gb in (4.0, 0.0):
        with pytest.raises(UserError, match="sample 0 has label -1, allowed are 0 to 2"):
            load_hub(root=str(tmp_path / "set.parquet"), conditional=True, cache_gb=cache_gb)
