"""Laws of the augmentation: exact where nothing happens, closed forms where something does."""

from math import cos, pi, sin

import pytest
import torch
from torch import Tensor

from scoregen.data.augment import SYM6, AugmentPipe, Change, NoAugment, warp
from scoregen.errors import UserError
from scoregen.rng import BatchRng

OFF = {"xflip": 0.0, "yflip": 0.0, "scale": 0.0, "rotate_frac": 0.0, "aniso": 0.0, "translate_frac": 0.0}


def only(**on: float) -> AugmentPipe:
    return AugmentPipe(p=1.0, **(OFF | on))


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def smooth(size: int) -> Tensor:
    """A blob off the centre and a slow wave, [1, 1, size, size] float64."""
    down, right = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    blob = torch.exp(-((right - 0.3) ** 2 + (down + 0.2) ** 2) / 0.1)
    return (blob + 0.3 * torch.sin(2 * right))[None, None]


def change(**what: float | tuple[float, float]) -> Change:
    """One image's change; what is not named does not happen."""
    pair = torch.zeros(1, 2, dtype=torch.float64)
    parts = {name: pair if name in ("flip", "shift") else pair[:, 0] for name in Change._fields}
    given = {name: torch.tensor([value], dtype=torch.float64) for name, value in what.items()}
    return Change(**(parts | given))


def test_the_filter_is_orthonormal_with_six_vanishing_moments() -> None:
    h = torch.tensor(SYM6, dtype=torch.float64)
    n = torch.arange(12, dtype=torch.float64)
    for k in range(6):
        assert float((h[: 12 - 2 * k] * h[2 * k :]).sum()) == pytest.approx(float(k == 0), abs=1e-11)
        assert float(((-1) ** n * n**k * h).sum()) == pytest.approx(0, abs=1e-8)


def test_x_flip_alone_flips_iff_its_label_is_one() -> None:
    x = noise(64, 3, 8, 8)
    out, labels = AugmentPipe(**(OFF | {"xflip": 1e8}))(x, BatchRng(1, size=64))
    assert labels.shape == (64, 9)
    assert not labels[:, 1:].any()
    assert 0 < labels[:, 0].sum() < 64
    assert torch.equal(out, torch.where(labels[:, :1, None, None] == 1, x.flip(3), x))


def test_y_flip_alone_flips_up_down() -> None:
    x = noise(64, 1, 8, 6)
    out, labels = only(yflip=1)(x, BatchRng(1, size=64))
    assert not labels[:, 0].any()
    assert 0 < labels[:, 1].sum() < 64
    assert torch.equal(out, torch.where(labels[:, 1, None, None, None] == 1, x.flip(2), x))


def test_images_to_which_nothing_happens_are_bit_equal() -> None:
    x = noise(200, 3, 8, 8)
    out, labels = AugmentPipe(p=0.1, xflip=0)(x, BatchRng(0, size=200))
    still = ~labels.any(1)
    assert 50 < still.sum() < 190
    assert torch.equal(out[still], x[still])
    assert not torch.isclose(out[~still], x[~still]).flatten(1).all(1).any()


@pytest.mark.parametrize("pipe", [AugmentPipe(p=0.0), NoAugment()])
def test_without_probability_nothing_changes(pipe: AugmentPipe | NoAugment) -> None:
    x = noise(5, 3, 8, 8)
    out, labels = pipe(x, BatchRng(0, size=5))
    assert torch.equal(out, x)
    assert labels.shape == (5, pipe.label_dim)
    assert not labels.any()


def test_labels_tell_what_was_drawn() -> None:
    rng = BatchRng(3, size=1000)
    u, w = rng.rand(11), rng.randn(4)
    labels = AugmentPipe(p=1.0).draw(BatchRng(3, size=1000)).labels()
    theta = (2 * u[:, 8] - 1) * pi
    r = torch.where(u[:, 9] < 0.5, (2 * u[:, 10] - 1) * pi, 0.0)
    scale, aniso, right, down = w.T
    expected = [
        *((u[:, 6] < 0.5).float(), (u[:, 7] < 0.5).float(), scale, theta.cos() - 1, theta.sin()),
        *(aniso * r.cos(), aniso * r.sin(), right, down),
    ]
    torch.testing.assert_close(labels, torch.stack(expected, 1))


def test_operations_fire_with_their_probabilities() -> None:
    n = 40_000
    drawn = AugmentPipe(p=0.12).draw(BatchRng(5, size=n))
    counts = {
        "flip left-right": ((drawn.flip[:, 0] == 1), 0.5),
        "flip up-down": ((drawn.flip[:, 1] == 1), 0.06),
        "scale": (drawn.scale != 0, 0.12),
        "rotate": (drawn.theta != 0, 0.12),
        "stretch": (drawn.aniso != 0, 0.12),
        "stretch along a random axis": (drawn.axis != 0, 0.06),
        "shift": ((drawn.shift != 0).all(1), 0.12),
        "scale and rotate": ((drawn.scale != 0) & (drawn.theta != 0), 0.12**2),
    }
    for name, (fired, p) in counts.items():
        assert float(fired.float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5), name


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-3, 2), (0, -2)])
def test_whole_pixel_shifts_move_pixels(right: int, down: int) -> None:
    x = noise(2, 3, 12, 16, dtype=torch.float64)
    shift = change(shift=(right / (0.125 * 16), down / (0.125 * 12)))
    inverse = AugmentPipe().inverse(shift, width=16, height=12)
    out = warp(x, inverse.repeat(2, 1, 1))
    inside = out[:, :, max(down, 0) : 12 + min(down, 0), max(right, 0) : 16 + min(right, 0)]
    source = x[:, :, max(-down, 0) : 12 - max(down, 0), max(-right, 0) : 16 - max(right, 0)]
    torch.testing.assert_close(inside, source, atol=1e-10, rtol=0)


def test_pixels_shifted_in_are_reflections() -> None:
    x = noise(1, 1, 8, 8, dtype=torch.float64)
    out = warp(x, AugmentPipe().inverse(change(shift=(2.0, 0.0)), width=8, height=8))
    torch.testing.assert_close(out[..., :2], x[..., 1:3].flip(3), atol=1e-10, rtol=0)


def test_affine_images_are_resampled_exactly() -> None:
    pipe = AugmentPipe()
    inverse = pipe.inverse(
        change(scale=1.5, theta=0.6, aniso=-0.8, axis=2.0, shift=(0.4, -0.3)), width=32, height=32
    )
    down, right = torch.meshgrid(*[torch.arange(32, dtype=torch.float64) - 15.5] * 2, indexing="ij")
    places = torch.einsum("ij,jyx->iyx", inverse[0], torch.stack([right, down, torch.ones_like(right)]))
    out = warp((0.3 * right - 0.7 * down + 1)[None, None], inverse)[0, 0]
    expected = 0.3 * places[0] - 0.7 * places[1] + 1
    torch.testing.assert_close(out[9:23, 9:23], expected[9:23, 9:23], atol=1e-9, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_counter_clockwise(quarters: int) -> None:
    inverse = AugmentPipe().inverse(change(theta=quarters * pi / 2), width=24, height=24)
    torch.testing.assert_close(
        warp(smooth(24), inverse), smooth(24).rot90(quarters, (2, 3)), atol=0.012, rtol=0
    )


def test_a_scale_of_w_enlarges_by_two_to_the_fifth_of_w() -> None:
    inverse = AugmentPipe().inverse(change(scale=5.0), width=24, height=24)
    torch.testing.assert_close(inverse[0, :, :2], torch.eye(2, dtype=torch.float64) / 2)


@pytest.mark.parametrize("r", [0.0, 0.7, -2.5])
def test_a_stretch_enlarges_along_its_axis_and_shrinks_across(r: float) -> None:
    inverse = AugmentPipe().inverse(change(aniso=5.0, axis=r), width=24, height=24)[0, :, :2]
    along = torch.tensor([cos(r), -sin(r)], dtype=torch.float64)  # counter-clockwise, y runs down
    across = torch.tensor([sin(r), cos(r)], dtype=torch.float64)
    torch.testing.assert_close(inverse @ along, along / 2)
    torch.testing.assert_close(inverse @ across, across * 2)


def test_micro_batches_see_what_the_whole_batch_sees() -> None:
    x, pipe = noise(32, 3, 8, 8), AugmentPipe(p=0.5)
    whole, labels = pipe(x, BatchRng(9, size=32))
    for start in range(0, 32, 8):
        rows = slice(start, start + 8)
        part, part_labels = pipe(x[rows], BatchRng(9, size=32, rows=rows))
        assert torch.equal(part_labels, labels[rows])
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


def test_points_are_refused() -> None:
    with pytest.raises(UserError, match="augment=none"):
        AugmentPipe()(torch.zeros(4, 2), BatchRng(0, size=4))
