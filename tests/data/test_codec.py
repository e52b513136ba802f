"""Laws of the codecs: what is encoded comes back, and what cannot be is refused by its sample."""

import pytest
import torch

from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.data.codec import IDENTITY, Encoded, LogCodec, codec_of, encoded
from scoregen.data.digits import load_digits
from scoregen.data.stream import Stream
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.guidance import ClassifierFreeGuidance, ClassifierGuidance
from scoregen.diffusion.precond import EDMPrecond
from scoregen.errors import UserError
from scoregen.images import to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_images_are_logarithms_of_one_plus_the_pixel_and_come_back_bit_for_bit() -> None:
    u = LogCodec().encode(to_model_range(LEVELS))
    torch.testing.assert_close(u.double(), torch.log1p(LEVELS / 255.0).double(), rtol=0, atol=2e-7)
    assert torch.equal(to_uint8(LogCodec().decode(u)), LEVELS)


def test_positive_data_are_their_own_values() -> None:
    y = torch.tensor([[1e-3, 1.0, 20.0]], dtype=torch.float64)
    codec = LogCodec(scale=1.0, offset=0.0)
    torch.testing.assert_close(codec.encode(y), y.log(), rtol=0, atol=0)
    torch.testing.assert_close(codec.decode(codec.encode(y)), y)


def test_a_stream_serves_what_a_view_of_the_data_holds() -> None:
    data, codec = load_digits(), LogCodec()
    batch = Stream(data, seed=0, codec=codec).batch(7, 5)
    seen = Encoded(data, codec).fetch(Stream(data, seed=0).indices(7, 5))
    assert torch.equal(batch.x, seen.x)
    assert torch.equal(batch.label, seen.label)
    assert encoded(data, IDENTITY) is data
    assert len({encoded(data, c).fingerprint for c in (IDENTITY, codec, LogCodec(offset=2.0))}) == 3


def test_guidance_passes_the_codec_on_and_a_model_without_one_has_the_identity() -> None:
    model = GaussianDenoiser(torch.zeros(1, 2, 2), torch.tensor(1.0))
    assert codec_of(model) is IDENTITY
    model.num_classes, model.codec = 2, LogCodec()
    assert codec_of(ClassifierFreeGuidance(model, 2.0)) == LogCodec()


def test_a_judge_of_images_does_not_guide_a_model_of_logarithms() -> None:
    model = GaussianDenoiser(torch.zeros(1, 2, 2), torch.tensor(1.0))
    judge = NetworkClassifier(torch.nn.Identity(), EDMPrecond(), shape=(1, 2, 2), num_classes=3)
    ClassifierGuidance(model, judge, 1.0)
    model.codec = LogCodec()
    with pytest.raises(UserError, match=r"the classifier looks at Identity\(\), the model draws LogCodec"):
        ClassifierGuidance(model, judge, 1.0)


@pytest.mark.parametrize(
    ("codec", "data", "said"),
    [
        (LogCodec(), ArrayDataset("points", torch.tensor([[1.0, 0.0], [2.0, -3.0]])), "sample 1 holds -3"),
        (LogCodec(1.0, 0.0), ArrayDataset("points", torch.tensor([[1.0], [0.0]])), "offset above -?0"),
        (LogCodec(0.5, 0.5), ArrayDataset("images", LEVELS), "8-bit images reach down to -1, .* above 0.5"),
    ],
)
def test_values_without_a_logarithm_are_refused(codec: LogCodec, data: ArrayDataset, said: str) -> None:
    with pytest.raises(UserError, match=said):
        codec.check(data)


@pytest.mark.parametrize(
    ("codec", "data"),
    [(LogCodec(), load_digits()), (LogCodec(1.0, 0.0), ArrayDataset("points", torch.tensor([[1e-30]])))],
    ids=["digits", "a tiny point"],
)
def test_what_passes_the_check_has_finite_logarithms(codec: LogCodec, data: ArrayDataset) -> None:
    codec.check(data)
    assert codec.encode(to_model_range(data.x)).isfinite().all()
