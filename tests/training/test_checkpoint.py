"""A checkpoint is whole or it is not loaded, whatever happens while it is written or afterwards."""

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scoregen import files
from scoregen.errors import UserError
from scoregen.training import checkpoint, weights
from scoregen.training.checkpoint import (
    check_undamaged,
    latest_checkpoint,
    load_weights,
    provenance,
    read_weights,
    save_checkpoint,
    weights_hash,
)

FILES = ("ema.safetensors", "model.safetensors", "optimizer.pt", "state.json")


def content(nimg: int, score: float | None = None) -> dict[str, Any]:
    """What a trainer would save after nimg images of training something."""
    torch.manual_seed(nimg)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    net(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return {
        "weights": {"model": net.state_dict(), "ema": {k: v / 3 for k, v in net.state_dict().items()}},
        "training": {
            "optimizer": optimizer.state_dict(),
            "meters": {"loss": torch.rand(3)},
            "note": [1, None],
        },
        "state": {"score": score, "hooks": {"status": {"last": 0.1 + nimg}}},
        "metadata": {"config": "seed: 0\n"},
    }


def save(folder: Path, nimg: int, score: float | None = None, **options: Any) -> Path:
    return save_checkpoint(folder, nimg, **content(nimg, score), **options)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def is_saved(found: checkpoint.Checkpoint | None, nimg: int) -> bool:
    """Whether this is the checkpoint of nimg, in all its parts."""
    if found is None or found.nimg != nimg:
        return False
    saved = content(nimg)
    parts = {stem: found.weights(stem) for stem in saved["weights"]}
    return equal(parts, saved["weights"]) and equal(found.training(), saved["training"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bytes_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, 20480, score=0.1)
    found = latest_checkpoint(tmp_path)
    assert path == tmp_path / "000000020480"
    assert names(path) == sorted(FILES)
    assert found is not None
    assert is_saved(found, 20480)
    assert found.state == content(20480, 0.1)["state"]
    assert found.skipped == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_any_json_state_has_one_text_and_is_read_back_from_it(state: Any) -> None:
    text = checkpoint._state_text({"nimg": 1, "state": state, "files": {}})
    body = json.loads(text)
    del body["checksum"]
    assert checkpoint._state_text(body) == text
    assert json.dumps(body["state"], sort_keys=True) == json.dumps(state, sort_keys=True)


class Killed(BaseException):
    """What `kill -9` looks like to the file system: nothing more is done."""


class Killer:
    """Lets the first `lives` file operations through, then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lives: float) -> None:
        self.lives = lives
        for module, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.mortal(getattr(module, name)))
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def tick(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def mortal(self, call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return call(*args, **kwargs)

        return wrapped

    def open(self, path: Path, mode: str) -> Any:
        self.tick()
        file = path.open(mode)
        write = file.write
        if "w" not in mode:
            return file

        def in_halves(data: Any) -> None:
            write(data[: len(data) // 2])
            file.flush()
            self.tick()
            write(data[len(data) // 2 :])

        return HalfWriter(file, in_halves)


class HalfWriter:
    """A file that can die in the middle of a write."""

    def __init__(self, file: Any, write: Any) -> None:
        self.file, self.write = file, write
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_leaves_the_newest_whole_checkpoint(tmp_path: Path, keep: int) -> None:
    survived, lives = False, 0
    while not survived:
        folder = tmp_path / str(lives)
        save(folder, 100, keep=keep)
        save(folder, 200, keep=keep)
        with pytest.MonkeyPatch.context() as monkeypatch:
            Killer(monkeypatch, lives)
            try:
                save(folder, 300, keep=keep)
                survived = True
            except Killed:
                pass
        found = latest_checkpoint(folder)
        expected = 300 if (folder / "000000000300").exists() else 200
        assert is_saved(found, expected)
        save(folder, 400, keep=keep)
        assert is_saved(latest_checkpoint(folder), 400)
        assert not [name for name in names(folder) if name.startswith(".")]
        lives += 1
    # Each of 4 files is opened, half written, fsynced; folders are made, fsynced, renamed, pruned.
    assert lives >= 4 * 3 + 7


def test_an_error_while_saving_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 100)
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.EIO, "bad disk")))
    with pytest.raises(OSError, match="bad disk"):
        save(tmp_path, 200)
    assert names(tmp_path) == ["000000000100"]


def raiser(error: BaseException) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints at 100 and 200; whoever damages the second repairs it."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, 100)
    save(folder, 200)
    return folder


@given(st.sampled_from(FILES), st.integers(min_value=0), st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_found_and_the_one_before_is_loaded(
    two: Path, name: str, offset: int, bit: int
) -> None:
    file = two / "000000000200" / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[offset % len(whole)] ^= 1 << bit
    file.write_bytes(flipped)
    try:
        found = latest_checkpoint(two)
    finally:
        file.write_bytes(whole)
    assert is_saved(found, 100)
    assert found is not None
    assert len(found.skipped) == 1
    assert name in found.skipped[0]


@pytest.mark.parametrize("byte", [0, 100, -1])
def test_a_flip_in_weights_that_are_named_themselves_is_found(tmp_path: Path, byte: int) -> None:
    file = save(tmp_path, 100) / "ema.safetensors"
    check_undamaged(file)
    flipped = bytearray(file.read_bytes())
    flipped[byte] ^= 4
    file.write_bytes(flipped)
    with pytest.raises(UserError, match=r"ema\.safetensors is damaged: the content of"):
        check_undamaged(file)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(flipped)
    check_undamaged(copy)  # of which nothing is known


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999, None])
def test_a_truncated_or_missing_file_is_found_named_and_left_in_place(
    two: Path, name: str, kept: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = two / "000000000200" / name
    whole = file.read_bytes()
    file.unlink() if kept is None else file.write_bytes(whole[: int(kept * len(whole))])
    try:
        found = latest_checkpoint(two)
        assert is_saved(found, 100)
        assert name in caplog.text
        assert (two / "000000000200").is_dir()
    finally:
        file.write_bytes(whole)
    assert is_saved(latest_checkpoint(two), 200)


def test_a_checkpoint_under_another_name_is_not_loaded(tmp_path: Path) -> None:
    save(tmp_path, 100)
    shutil.copytree(tmp_path / "000000000100", tmp_path / "000000000900")
    assert is_saved(latest_checkpoint(tmp_path), 100)


def test_without_any_checkpoint_there_is_none_but_all_damaged_is_an_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / ".tmp-000000000100").mkdir()
    assert latest_checkpoint(tmp_path) is None
    (save(tmp_path, 200) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors has 0 bytes"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_numbers_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save(tmp_path, 100)
    before = bytes_under(tmp_path)
    monkeypatch.setattr(os, "fsync", raiser(OSError(code, os.strerror(code))))
    with pytest.raises(UserError, match=r"needs 0\.0 MB, [\d,.]+ MB are free"):
        save(tmp_path, 200)
    assert bytes_under(tmp_path) == before
    assert names(tmp_path) == ["000000000100"]


def test_a_disk_known_to_be_too_small_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = content(200) | {"weights": {"model": {"w": torch.zeros(1_000_000)}}}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_500_000))
    monkeypatch.setattr(checkpoint, "write_file", raiser(AssertionError("written")))
    with pytest.raises(UserError, match=r"needs 4\.0 MB, 2\.5 MB are free"):
        save_checkpoint(tmp_path, 200, **large)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "scores", "kept"),
    [
        (1, [None, None, None], [3]),
        (2, [None, None, None], [2, 3]),
        (1, [0.1, 0.2, 0.3], [1, 3]),
        (1, [0.3, 0.1, 0.2], [2, 3]),
        (1, [0.1, 0.1, 0.2], [2, 3]),  # the latest among equals
        (1, [math.nan, 0.5, None], [2, 3]),
        (2, [0.1, 0.2, 0.3, 0.4], [1, 3, 4]),
    ],
)
def test_the_last_k_and_the_best_are_kept(
    tmp_path: Path, keep: int, scores: list[float | None], kept: list[int]
) -> None:
    for nimg, score in enumerate(scores, start=1):
        save(tmp_path, nimg, score, keep=keep, keep_best="score")
    assert names(tmp_path) == [f"{nimg:012d}" for nimg in kept]


def test_a_damaged_newer_one_neither_displaces_nor_is_displaced_by_what_a_fallen_back_run_saves(
    tmp_path: Path,
) -> None:
    save(tmp_path, 100, keep=1)
    flip_a_bit(save(tmp_path, 200, keep=2) / "optimizer.pt")
    save(tmp_path, 150, keep=1)
    assert is_saved(latest_checkpoint(tmp_path), 150)
    assert names(tmp_path) == ["000000000150", "000000000200"]
    save(tmp_path, 200, keep=1)
    assert is_saved(latest_checkpoint(tmp_path), 200)
    assert names(tmp_path) == ["000000000200", "000000000200.damaged"]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    file.write_bytes(data)


def test_saving_twice_at_one_time_keeps_the_first(tmp_path: Path) -> None:
    save(tmp_path, 100)
    before = bytes_under(tmp_path)
    save(tmp_path, 100)
    assert bytes_under(tmp_path) == before


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = save(tmp_path, 100)
    finally:
        os.umask(old)
    assert {name: oct((path / name).stat().st_mode & 0o777) for name in FILES} == dict.fromkeys(
        FILES, "0o644"
    )
    assert oct(path.stat().st_mode & 0o777) == "0o755"


@pytest.mark.parametrize("foreign", [nn.Linear(1, 1), Path("x"), {1, 2}, torch.float32, print])
def test_only_plain_containers_are_saved(tmp_path: Path, foreign: Any) -> None:
    bad = content(100) | {"training": {"hooks": [0, {"deep": foreign}]}}
    with pytest.raises(TypeError, match=r"training\['hooks'\]\[1\]\['deep'\] is a"):
        save_checkpoint(tmp_path, 100, **bad)
    assert names(tmp_path) == []


def test_every_weights_file_tells_its_origin(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 640, **content(640) | {"metadata": provenance() | {"config": "a: 1\n"}})
    for stem in ("model", "ema"):
        metadata = read_weights(path / f"{stem}.safetensors")[1]
        assert metadata["nimg"] == "640"
        assert metadata["config"] == "a: 1\n"
        assert metadata["torch"] == torch.__version__
        assert {"scoregen", "python"} <= metadata.keys()


def test_the_commit_is_that_of_the_clone_that_scoregen_runs_from() -> None:
    root = Path(weights.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("scoregen does not run from a clone")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("git cannot read the clone")
    assert provenance()["git"].removesuffix("-dirty") == head.stdout.strip()


def test_a_package_installed_inside_another_clone_does_not_claim_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    commit = ["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    package = tmp_path / "site" / "scoregen" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr("scoregen.__file__", str(package))
    assert "git" not in provenance()


def test_weights_hash_is_the_head_of_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert weights_hash(tmp_path / "x") == "ba7816bf8f01cfea" == hashlib.sha256(b"abc").hexdigest()[:16]


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {"a": base, "b": base, "row": base.view(3, 4)[1], "t": base.view(3, 4).T}
    weights.write_weights(tmp_path / "w.safetensors", tensors, {})
    assert equal(read_weights(tmp_path / "w.safetensors")[0], tensors)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int64]
)
def test_weights_of_every_dtype_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"w": torch.arange(6).reshape(2, 3).to(dtype), "scalar": torch.tensor(3).to(dtype)}
    weights.write_weights(tmp_path / "w.safetensors", tensors, {"x": "é"})
    assert equal(read_weights(tmp_path / "w.safetensors"), (tensors, {"x": "é"}))


@pytest.mark.parametrize("write", [
    lambda path: torch.save({"w": torch.zeros(2)}, path),
    lambda path: path.write_bytes(pickle.dumps({"w": 1})),
])  # fmt: skip
def test_pickles_are_refused_by_name(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="is a pickle"):
        read_weights(tmp_path / "w.safetensors")


def test_a_torn_or_missing_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="There is no weights file"):
        read_weights(path)
    weights.write_weights(path, {"w": torch.zeros(9)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not whole"):
        read_weights(path)


def test_weights_of_another_network_change_nothing_and_say_why() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1), nn.Linear(1, 1)).state_dict()
    del other["0.bias"]
    with pytest.raises(UserError) as caught:
        load_weights(net, other, "runs/x")
    message = str(caught.value)
    assert "runs/x" in message
    assert "1 missing: 0.bias" in message
    assert "2 unexpected: 2.weight, 2.bias" in message
    assert "1 of another shape: 1.weight (1, 4) in the file, (1, 3) here" in message
    assert "`network`" in message
    assert equal(net.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bias": None}, "1 missing: bias"),
        ({"extra": torch.zeros(1)}, "1 unexpected: extra"),
        ({"bias": torch.zeros(5)}, "1 of another shape: bias"),
    ],
)
def test_each_kind_of_difference_alone_is_refused(change: dict[str, Tensor | None], kind: str) -> None:
    net = nn.Linear(2, 3)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    changed = {key: value + 1 for key, value in state.items()} | change
    with pytest.raises(UserError, match=kind):
        load_weights(net, {key: value for key, value in changed.items() if value is not None}, "x")
    assert equal(net.state_dict(), state)


def test_a_checkpoint_of_other_averages_names_what_it_holds(tmp_path: Path) -> None:
    save(tmp_path, 100)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match=r"no weights 'ema_0\.100', only ema, model"):
        found.weights("ema_0.100")
