import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scoregen.errors import UserError
from scoregen.networks import ADM, NETWORKS, DDPMpp, NCSNpp
from scoregen.networks.blocks import ResidualBlock

CIFAR = {"resolution": 32, "channels": 3, "augment_dim": 9}
PUBLISHED = [  # (build, arguments, parameters)
    (DDPMpp, CIFAR, 55_733_891),
    (DDPMpp, {**CIFAR, "num_classes": 10}, 55_735_299),
    (NCSNpp, CIFAR, 56_397_827),
    (NCSNpp, {**CIFAR, "num_classes": 10}, 56_400_643),
    (DDPMpp, {**CIFAR, "resolution": 64, "channel_mult": (1, 2, 2, 2)}, 61_805_571),
    (ADM, {"resolution": 64, "channels": 3, "num_classes": 1000}, 295_899_267),
]


@pytest.mark.parametrize(("build", "arguments", "parameters"), PUBLISHED)
def test_published_builds_have_their_parameter_count(build, arguments, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(**arguments).parameters()) == parameters


def test_ddpmpp_costs_its_42_gflop_an_image():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DDPMpp(**CIFAR)(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert counter.get_total_flops() == pytest.approx(42.4e9, rel=1e-3)


def test_state_dict_has_the_names_and_shapes_of_the_file_format(build):
    shapes = {key: tuple(value.shape) for key, value in build("ncsnpp").state_dict().items()}
    expected = {
        "map_noise.freqs": (8,),
        "map_label.weight": (16, 5),
        "map_label.bias": (16,),
        "map_augment.weight": (16, 9),
        "map_layer0.weight": (32, 16),
        "map_layer1.bias": (32,),
        "enc.8x8_conv.weight": (8, 3, 3, 3),
        "enc.8x8_block1.norm0.weight": (8,),
        "enc.4x4_down.conv0.resample_filter": (1, 1, 4, 4),
        "enc.4x4_down.skip.resample_filter": (1, 1, 4, 4),
        "enc.4x4_down.skip.weight": (8, 8, 1, 1),
        "enc.4x4_aux_residual.weight": (8, 3, 3, 3),
        "enc.4x4_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.4x4_block0.affine.weight": (16, 32),
        "enc.4x4_block0.skip.weight": (16, 8, 1, 1),
        "enc.4x4_block1.qkv.weight": (48, 16, 1, 1),
        "enc.4x4_block1.proj.bias": (16,),
        "dec.4x4_in1.conv1.weight": (16, 16, 3, 3),
        "dec.8x8_up.conv0.resample_filter": (1, 1, 4, 4),
        "dec.8x8_block2.norm0.bias": (16,),
        "dec.8x8_aux_norm.weight": (8,),
        "dec.8x8_aux_conv.bias": (3,),
    }
    assert expected.items() <= shapes.items()
    adm = build("adm").state_dict()
    assert {"out_norm.weight", "out_conv.bias", "map_label.weight"} <= adm.keys()
    assert "map_label.bias" not in adm
    assert "enc.4x4_down.skip.resample_filter" in adm
    assert "enc.4x4_down.skip.weight" not in adm


@pytest.mark.parametrize("attend", [False, True])
def test_a_new_block_hardly_changes_its_scaled_input(attend):
    x, emb = torch.randn(2, 64, 4, 4), torch.randn(2, 16)
    song = ResidualBlock(64, 64, style=DDPMpp.style, emb_channels=16, dropout=0.0, attend=attend)
    adm = ResidualBlock(64, 64, style=ADM.style, emb_channels=16, dropout=0.0, attend=attend)
    torch.testing.assert_close(song(x, emb), x * (0.5 if attend else 0.5**0.5), atol=1e-4, rtol=0)
    assert torch.equal(adm(x, emb), x)


def test_a_new_network_predicts_zero(build, name):
    x, t = torch.randn(4, 3, 8, 8), torch.randn(4)
    f = build(name, perturbed=False)(x, t, torch.arange(4))
    assert f.abs().max() <= (0.0 if name == "adm" else 1e-4)


def test_gradients_reach_every_parameter(build, name):
    network = build(name).train()
    x, t = torch.randn(2, 3, 8, 8), torch.randn(2)
    network(x, t, torch.tensor([1, 2]), torch.randn(2, 9)).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_null_class_is_no_class_and_zero_augment_labels_are_none(build, name):
    network, x, t = build(name), torch.randn(2, 3, 8, 8), torch.randn(2)
    with torch.no_grad():
        plain = network(x, t)
        assert torch.equal(network(x, t, torch.full((2,), 5)), plain)
        assert torch.equal(network(x, t, None, torch.zeros(2, 9)), plain)
        for changed in (network(x, t, torch.tensor([0, 3])), network(x, t, None, torch.ones(2, 9))):
            assert ((changed - plain).abs().amax((1, 2, 3)) > 1e-4).all()


def test_each_row_is_computed_as_if_alone(build, name):
    network, x = build(name).double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    t, cond, augment = torch.randn(3, dtype=torch.float64), torch.tensor([0, 5, 2]), torch.randn(3, 9)
    with torch.no_grad():
        together = network(x, t, cond, augment)
        alone = [network(x[i : i + 1], t[i : i + 1], cond[i : i + 1], augment[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=1e-12)


def test_channels_last_changes_the_layout_only(build, name):
    network, x, t = build(name).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2)
    with torch.no_grad():
        expected = network(x, t)
        network.to(memory_format=torch.channels_last)
        actual = network(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_autocast_stays_within_the_resolution_of_bfloat16(build, name):
    network, x, t = build(name), torch.randn(4, 3, 8, 8), torch.randn(4)
    with torch.no_grad():
        expected = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            actual = network(x, t)
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", ["ncsnpp", "adm"])  # between them they have every layer
def test_compiling_breaks_no_graph_and_changes_no_number(build, name):
    network = build(name, num_blocks=1, attention_resolutions=())  # the bottleneck attends
    arguments = torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([1, 5]), torch.randn(2, 9)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), network(*arguments))


def test_only_the_constructor_and_dropout_draw(build, name):
    x, t = torch.randn(2, 3, 8, 8), torch.randn(2)
    first, second = build(name), build(name)  # the same seed
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    before = torch.get_rng_state()
    first.train()(x, t)
    assert torch.equal(torch.get_rng_state(), before)
    dropping = build(name, dropout=0.5)
    with torch.no_grad():
        assert torch.equal(dropping(x, t), first(x, t))  # evaluation drops nothing
        assert not torch.equal(dropping.train()(x, t), dropping(x, t))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 9}, "resolution 9"),
        ({"attention_resolutions": (16,)}, r"\[16\].*\[8, 4\]"),
        ({"channel_mult": ()}, "levels of channel_mult"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(build, name, arguments, message):
    with pytest.raises(UserError, match=message):
        build(name, **arguments)


def test_adm_refuses_channels_that_do_not_fill_a_head(build):
    with pytest.raises(UserError, match="heads of 64"):
        build("adm", model_channels=48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 1, 8, 8)}, r"\(3, 8, 8\).*\(2, 1, 8, 8\)"),
        ({"noise_labels": torch.zeros(())}, "noise_labels"),
        ({"cond": torch.zeros(2)}, "integers"),
        ({"cond": torch.zeros(3, dtype=torch.long)}, "class ids"),
        ({"augment_labels": torch.zeros(2, 8)}, r"\(2, 9\).*\(2, 8\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(build, change, message):
    inputs = {"x": torch.zeros(2, 3, 8, 8), "noise_labels": torch.zeros(2), **change}
    with pytest.raises(UserError, match=message):
        build("ddpmpp")(**inputs)


def test_an_unconditional_network_refuses_class_ids(build):
    network = build("ddpmpp", num_classes=0)
    with pytest.raises(UserError, match="without classes"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_the_registry_holds_every_network_by_its_configuration_name():
    plain = {"ddpmpp", "ncsnpp", "adm", "edm2", "mlp", "diffusers_unet"}
    energies = {"energy_mlp", "energy_ddpmpp"}
    assert set(NETWORKS) == plain | energies | {"wavegrad"}
