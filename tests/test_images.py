import numpy as np
import pytest
import torch
from PIL import Image

from scoregen.errors import UserError
from scoregen.images import make_grid, picture, save_png, scatter, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_level_survives_the_models_range() -> None:
    assert torch.equal(to_uint8(LEVELS.float() / 127.5 - 1), LEVELS)
    assert torch.equal(to_uint8(LEVELS.double() / 127.5 - 1), LEVELS)


def test_quantisation_rounds_half_up_and_clips() -> None:
    x = torch.tensor([-1.5, -1.0, -1 + 0.498 / 127.5, -1 + 0.502 / 127.5, 0.0, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_found_in_its_cell_of_the_grid(channels: int) -> None:
    images = torch.randint(0, 255, (7, channels, 40, 50), generator=torch.Generator().manual_seed(0)).byte()
    grid = make_grid(images, columns=3, padding=2)
    assert grid.shape == (channels, 3 * 42 + 2, 3 * 52 + 2)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * 42, 2 + i % 3 * 52
        assert torch.equal(grid[:, top : top + 40, left : left + 50], image)
        grid[:, top : top + 40, left : left + 50] = 255
    assert (grid == 255).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_make_no_picture_lie_side_by_side(channels: int) -> None:
    images = torch.arange(2 * channels * 40 * 50, dtype=torch.int64).remainder(251).to(torch.uint8)
    images = images.reshape(2, channels, 40, 50)
    grid = make_grid(images, columns=2, padding=0)
    expected = torch.cat([channel for image in images for channel in image], 1)
    assert torch.equal(grid, expected[None])


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    assert torch.equal(make_grid(image, padding=0)[:, ::4, ::4], image[0])
    assert make_grid(image, padding=0).shape == (1, 32, 32)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_gives_the_image_back(channels: int, mode: str, tmp_path) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0)).byte()
    save_png(image, tmp_path / "deep" / "image.png")
    with Image.open(tmp_path / "deep" / "image.png") as read:
        assert read.mode == mode
        pixels = torch.from_numpy(np.array(read)).reshape(5, 7, channels)
    assert torch.equal(pixels.permute(2, 0, 1), image)


def test_a_png_of_two_channels_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="1 or 3 channels, this image has 2"):
        save_png(torch.zeros(2, 4, 4, dtype=torch.uint8), tmp_path / "image.png")


def test_points_darken_their_pixel_and_y_points_up() -> None:
    points = torch.tensor([[-0.9, 0.9], [0.9, 0.1], [0.9, 0.1], [9.0, 0.0], [torch.nan, 0.0]])
    picture = scatter(points, size=4, extent=1.0)
    expected = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    expected[0, 0, 0], expected[0, 1, 3] = 94, 35  # 255 exp(-1), 255 exp(-2)
    assert torch.equal(picture, expected)
    assert (scatter(points[:2], size=64) < 255).sum() == 2


def test_vectors_of_any_length_are_pictured_by_their_first_two_axes() -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(picture(points), scatter(points[:, :2]))
    on_a_line = torch.stack([points[:, 0], torch.zeros(20)], 1)
    assert torch.equal(picture(points[:, :1]), scatter(on_a_line))
