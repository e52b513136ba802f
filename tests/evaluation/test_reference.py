"""Laws of reference statistics: what is written is read, what does not fit is refused, the cache is used."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.errors import UserError
from scoregen.evaluation.reference import Reference, batches, read_reference, reference_of
from scoregen.evaluation.scatter import ScatterExtractor
from tests.evaluation.conftest import Held


class Other(ScatterExtractor):
    """The same features under another identity."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.sha256 = name, "0" * 64


@pytest.fixture
def reference(digits: Tensor) -> Reference:
    return reference_of(Held(digits), ScatterExtractor())


def test_statistics_are_those_of_all_features(reference: Reference, digits: Tensor) -> None:
    features = ScatterExtractor()(digits).double()
    assert torch.allclose(reference.gaussian.mean, features.mean(0), rtol=1e-9, atol=1e-12)
    assert torch.allclose(reference.gaussian.cov, torch.cov(features.T), rtol=1e-9, atol=1e-12)
    assert (reference.origin.n, reference.origin.fingerprint) == (len(digits), "f" * 64)


def test_what_is_written_is_read_bit_for_bit(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "made" / "stats.npz"
    reference.write(path)
    again = read_reference(path, ScatterExtractor())
    assert torch.equal(again.gaussian.mean, reference.gaussian.mean)
    assert torch.equal(again.gaussian.cov, reference.gaussian.cov)
    assert again.origin == reference.origin
    assert again.sha256 == reference.sha256
    assert again.gaussian.n == reference.gaussian.n
    assert [file.name for file in path.parent.iterdir()] == ["stats.npz"]


def test_edm_reads_ours_and_we_read_edms(reference: Reference, tmp_path: Path) -> None:
    reference.write(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        mu, sigma = file["mu"], file["sigma"]  # all that EDM's tools take
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    read = read_reference(tmp_path / "edm.npz", Other("inception"))
    assert torch.equal(read.gaussian.cov, reference.gaussian.cov)
    assert read.gaussian.n is None
    with pytest.raises(UserError, match="an extractor that the file does not name"):
        read_reference(tmp_path / "edm.npz", ScatterExtractor())


@pytest.mark.parametrize("name", ["scatter", "inception"])
def test_statistics_of_another_extractor_are_refused(reference: Reference, tmp_path: Path, name: str) -> None:
    reference.write(tmp_path / "stats.npz")
    with pytest.raises(UserError, match=f"of scatter .* cannot be compared with 164 features of {name}"):
        read_reference(tmp_path / "stats.npz", Other(name))


def test_statistics_of_another_dimension_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(UserError, match=r"7 features .* cannot be compared with 164"):
        read_reference(tmp_path / "stats.npz", Other("inception"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(164)}, "it needs sigma"),
        ({"mu": np.zeros(164), "sigma": np.zeros((164, 3))}, "not a finite mean"),
        ({"mu": np.full(164, np.nan), "sigma": np.eye(164)}, "not a finite mean"),
        ({"mu": np.zeros(164), "sigma": np.array({"a": 1})}, "cannot be read as an \\.npz of plain arrays"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        read_reference(tmp_path / "stats.npz", Other("inception"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", pickle.dumps({"fid": 1})])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stats.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
        read_reference(tmp_path / "stats.npz", ScatterExtractor())
    with pytest.raises(UserError, match="there is no such file"):
        read_reference(tmp_path / "absent.npz", ScatterExtractor())


def test_a_cached_reference_is_not_computed_again_and_new_data_are(digits: Tensor, tmp_path: Path) -> None:
    class Gone(Held):
        def fetch(self, indices: Tensor) -> object:
            raise AssertionError("the cache was not used")

    first = reference_of(Held(digits), ScatterExtractor(), tmp_path)
    assert reference_of(Gone(digits), ScatterExtractor(), tmp_path).sha256 == first.sha256
    for data, extractor in (
        (Gone(digits, fingerprint="e" * 64), ScatterExtractor()),
        (Gone(digits), Other("scatter")),
    ):
        with pytest.raises(AssertionError, match="the cache was not used"):
            reference_of(data, extractor, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("world", [1, 3, 7])
def test_shares_of_the_processes_are_a_partition(world: int) -> None:
    x = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    shares = [batches(Held(x), rank, world, batch=4) for rank in range(world)]
    seen = torch.cat([batch.flatten() for share in shares for batch in share])
    assert torch.equal(seen.sort().values, x.flatten())


def test_data_that_are_no_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"data set held holds torch\.float32 .* do not apply"):
        reference_of(Held(torch.zeros(5, 2)), ScatterExtractor())


def test_float_images_are_compared_at_the_levels_that_samples_get(digits: Tensor) -> None:
    for levels, of_floats in zip(batches(Held(digits)), batches(Held(to_model_range(digits))), strict=True):
        assert torch.equal(levels, of_floats)
