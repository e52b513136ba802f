"""Laws of latents: the autoencoder's own, whitened exactly, kept for as long as nothing changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.config import instantiate
from scoregen.data import autoencoder, latents
from scoregen.data.autoencoder import Autoencoder
from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.data.codec import encoded
from scoregen.data.folder import load_images
from scoregen.data.latents import LatentCodec, Latents, LatentStats, LatentStream, kept_moments
from scoregen.data.stats import measure
from scoregen.data.stream import Stream
from scoregen.errors import UserError
from scoregen.model import ModelSpec
from tests.data.autoencoders import save_autoencoder
from tests.data.containers import Files, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"), channels=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scoregen" / "latents"


@pytest.fixture
def data() -> ArrayDataset:
    """50 noise images, 3 x 8 x 8, of 4 classes."""
    x = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return ArrayDataset("noise", x, torch.arange(50) % 4)


def make(folder: Path, data: ArrayDataset, **options) -> Latents:  # type: ignore[no-untyped-def]
    coder = Autoencoder(path=str(folder), batch=16, **options)
    return LatentCodec(coder, kept_moments(data, coder, "cpu")[1]).encoded(data)


def posterior(folder: Path, data: ArrayDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from diffusers itself."""
    from diffusers import AutoencoderKL

    with torch.no_grad():
        q = AutoencoderKL.from_pretrained(folder).encode(to_model_range(data.x)).latent_dist
    return q.mean, q.std


def test_encoding_and_decoding_are_those_of_the_autoencoder(folder: Path, data: ArrayDataset) -> None:
    from diffusers import AutoencoderKL

    network, codec = AutoencoderKL.from_pretrained(folder), make(folder, data).codec
    x = to_model_range(data.x)
    with torch.no_grad():
        mode = network.encode(x).latent_dist.mode()
        expected = network.decode(mode).sample
    z = codec.encode(x)
    mean, std = (torch.tensor(value)[:, None, None] for value in (codec.stats.mean, codec.stats.std))
    torch.testing.assert_close(z / 0.5 * std + mean, mode, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.decode(z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_whitened_latents_have_mean_zero_and_the_asked_deviation_in_every_channel(
    folder: Path, data: ArrayDataset, std: float
) -> None:
    z = make(folder, data, posterior="mean", std=std).fetch(torch.arange(50)).x.double()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.full((2,), std).double())


def test_the_deviation_of_draws_counts_the_posterior(folder: Path, data: ArrayDataset) -> None:
    mean, std = (part.double() for part in posterior(folder, data))
    found = make(folder, data)
    variance = mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(found.codec.stats.std).double(), variance.sqrt())
    stream = LatentStream(data, found, seed=0)
    draws = torch.cat([stream.batch(n, 50).x for n in range(0, 5000, 50)]).double()
    share = std.square().mean((0, 2, 3)) / variance
    assert (share > 0.01).all()
    torch.testing.assert_close(draws.std((0, 2, 3)), torch.full((2,), 0.5).double(), rtol=2e-3, atol=0)
    torch.testing.assert_close(draws.mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("batch", [7, 50])
def test_what_is_kept_is_what_the_autoencoder_gives_whatever_the_batch(
    folder: Path, data: ArrayDataset, batch: int
) -> None:
    kept, _ = kept_moments(data, Autoencoder(str(folder), batch=batch), "cpu")
    torch.testing.assert_close(kept, torch.cat(posterior(folder, data), 1), rtol=1e-4, atol=1e-5)


def test_the_stream_serves_the_latents_of_the_images_in_their_order(folder: Path, data: ArrayDataset) -> None:
    found = make(folder, data, posterior="mean")
    images, stream = Stream(data, seed=4, codec=found.codec), LatentStream(data, found, seed=4)
    for nimg in (0, 40, 16):
        ours, theirs = stream.batch(nimg, 16), images.batch(nimg, 16)
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-4, atol=1e-5)
        assert ours.label is not None
        assert theirs.label is not None
        assert torch.equal(ours.label, theirs.label)
    assert stream.dataset is data


def test_a_draw_depends_on_seed_and_place_only(folder: Path, data: ArrayDataset) -> None:
    found = make(folder, data)
    whole = LatentStream(data, found, seed=4).batch(32, 16).x
    stream = LatentStream(data, found, seed=4)
    stream.batch(0, 16)
    parts = [stream.batch(32, 16, rows).x for rows in (slice(0, 4), slice(4, 16))]
    assert torch.equal(torch.cat(parts), whole)
    epoch = LatentStream(data, found, seed=4).batch(0, 50), LatentStream(data, found, seed=4).batch(50, 50)
    first, second = (batch.x[batch.x.flatten(1)[:, 0].argsort()] for batch in epoch)
    assert not torch.equal(first, second)  # fresh noise for the same images


def test_data_seen_at_random_are_the_same_each_time(folder: Path, data: ArrayDataset) -> None:
    found = make(folder, data)
    assert torch.equal(found.fetch(torch.tensor([9, 3])).x, found.fetch(torch.arange(10)).x[[9, 3]])
    assert (found.shape, found.num_classes, len(found)) == ((2, 4, 4), 4, 50)
    assert isinstance(encoded(data, found.codec), Latents)
    assert measure(found).std == pytest.approx(0.5, rel=0.03)


def test_what_is_kept_is_used_until_images_weights_or_posterior_change(
    folder: Path, data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = make(folder, data)
    with monkeypatch.context() as patch:
        patch.setattr(latents, "_encode", lambda *_: pytest.fail("they were encoded again"))
        again = make(folder, data, std=1.0)
        assert torch.equal(again.moments.x, first.moments.x)
        relabelled = make(folder, ArrayDataset("noise", data.x, data.label.flip(0)))  # type: ignore[union-attr]
        assert torch.equal(relabelled.fetch(torch.arange(50)).label, data.label.flip(0))  # type: ignore
    other = save_autoencoder(tmp_path / "other", channels=3, seed=1)
    changed = data.x.clone()
    changed[7, 0, 0, 0] ^= 1
    for path, images, options in (
        (other, data, {}),
        (folder, ArrayDataset("noise", changed, data.label), {}),
        (folder, data, {"posterior": "mean"}),
    ):
        assert make(path, images, **options).fingerprint != first.fingerprint
    assert len(list(cache.glob("*.npy"))) == 4


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_damaged_latents_are_made_again(folder: Path, data: ArrayDataset, cache: Path, damage: str) -> None:
    first = make(folder, data).moments.x.clone()
    (file,), (stats,) = cache.glob("*.npy"), cache.glob("*.json")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "gone":
        file.unlink()
    else:
        stats.write_text("{")
    assert torch.equal(make(folder, data).moments.x, first)


def test_images_decoded_on_demand_are_encoded_alike(folder: Path, files: Files, tmp_path: Path) -> None:
    write_folder(tmp_path, files)
    held, decoded = (load_images(root=str(tmp_path / "set"), cache_gb=gb) for gb in (1.0, 0.0))
    assert decoded.on_demand
    assert torch.equal(make(folder, decoded).moments.x, make(folder, held).moments.x)


def test_what_a_model_knows_of_its_latents_is_read_back(folder: Path, data: ArrayDataset) -> None:
    stats = make(folder, data).codec.stats
    spec = ModelSpec((2, 4, 4), 4, latents=stats)
    assert ModelSpec.from_json(spec.to_json()) == spec
    old = {key: value for key, value in json.loads(spec.to_json()).items() if key != "latents"}
    assert ModelSpec.from_json(json.dumps(old)) == replace(spec, latents=None)


def test_codecs_are_equal_by_what_they_do_not_by_where_they_lie(folder: Path) -> None:
    stats = LatentStats("a", (0.0,), (1.0,))
    codec = LatentCodec(Autoencoder("here"), stats)
    assert codec == LatentCodec(Autoencoder("there", batch=1), stats)
    assert codec != LatentCodec(Autoencoder("here", std=1.0), stats)
    assert codec != LatentCodec(Autoencoder("here"), replace(stats, sha256="b"))


def no_folder(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def no_weights(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def pickled(folder: Path) -> None:
    no_weights(folder)
    torch.save({}, folder / "diffusion_pytorch_model.bin")


def torn(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "quant_conv" not in k}, file)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_folder, r"the autoencoder codec\.path=.*vae was not found: looked for .*SCOREGEN_DATA"),
        (no_weights, "holds no readable AutoencoderKL in safetensors"),
        (pickled, "holds no readable AutoencoderKL in safetensors"),
        (torn, "holds no readable AutoencoderKL in safetensors"),
        (incomplete, "holds no whole AutoencoderKL: 4 weights are missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_autoencoders_are_refused(
    spoil,
    said: str,
    tmp_path: Path,
    data: ArrayDataset,  # type: ignore[no-untyped-def]
) -> None:
    folder = save_autoencoder(tmp_path / "vae", channels=3)
    spoil(folder)
    with pytest.raises(UserError, match=said):
        make(folder, data)


def test_what_cannot_be_encoded_is_refused(folder: Path, data: ArrayDataset) -> None:
    for shape, said in (
        ((1, 8, 8), "takes images of 3 channels, the data have shape .*data.mode=RGB"),
        ((3, 7, 7), "shrinks images by 2, and 7 x 7 pixels are no multiple"),
        ((2,), "takes images of 3 channels"),
    ):
        with pytest.raises(UserError, match=said):
            Autoencoder(str(folder)).code_shape(shape)
    with pytest.raises(UserError, match=r"codec\.subfolder=vae: there is no such folder in"):
        Autoencoder(str(folder), subfolder="vae").load()
    assert Autoencoder(str(folder.parent), subfolder=folder.name).sha256 == Autoencoder(str(folder)).sha256
    with pytest.raises(UserError, match=r"codec\.path is needed"):
        instantiate({"_target_": "scoregen.data.autoencoder.Autoencoder"}).load()


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "a channel .* is constant"), (float("nan"), "not all finite")]
)
def test_latents_without_use_are_refused(
    folder: Path, data: ArrayDataset, tmp_path: Path, value: float, said: str
) -> None:
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        network.quant_conv.weight.fill_(value)
    network.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=said):
        make(tmp_path / "vae", data, posterior="mean")
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_another_autoencoder_than_that_of_the_training_is_refused(
    folder: Path, data: ArrayDataset, tmp_path: Path
) -> None:
    codec = make(folder, data).codec
    codec.check()
    other = Autoencoder(str(save_autoencoder(tmp_path / "other", channels=3, seed=1)))
    with pytest.raises(UserError, match=r"has sha256 .* the model was trained with .*put that one back"):
        replace(codec, autoencoder=other).check()


def test_an_autoencoder_that_has_moved_is_found_below_the_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOREGEN_DATA", str(folder.parent))
    assert Autoencoder(f"/gone/{folder.name}").sha256 == Autoencoder(str(folder)).sha256
    assert autoencoder._find(folder.name) == (folder, True)
