"""Laws of the profile: it counts what a step costs, its parts add up, and it changes nothing."""

import re
from collections.abc import Callable

import pytest
from torch.utils.flop_counter import FlopCounterMode

from scoregen import config
from scoregen.errors import UserError
from scoregen.networks.layers import Linear
from scoregen.training.hooks.profile import PROFILE, Profile, count_flops
from scoregen.training.trainer import Trainer
from tests.distillers.conftest import distil, teacher  # noqa: F401 - fixtures
from tests.training.test_trainer import assert_same, states

Build = Callable[..., Trainer]
HOOK = "hooks.profile={_target_: scoregen.training.hooks.ProfileHook, warmup: 2, steps: 3, traced: 2}"


def count_next(trainer: Trainer) -> float:
    """FLOPs an image of the next step."""
    return count_flops(trainer, trainer.method.phases(trainer.nimg // trainer.options.batch, trainer.nimg))


def test_flops_are_those_of_a_network_that_is_counted_by_hand(build: Build) -> None:
    trainer = build("data=moons", "network=mlp", "network.width=64")
    network = trainer.denoiser.network
    layers = [module for module in network.modules() if isinstance(module, Linear)]
    assert len(layers) > 8
    products = [2 * layer.weight.numel() for layer in layers]
    # Forward, gradient of the weights, gradient of the input; nothing asks for that of x and of sigma.
    inputs = 2 * (network.input.weight.numel() + network.map_layer0.weight.numel())
    assert count_next(trainer) == pytest.approx(3 * sum(products) - inputs, rel=0.01)


@pytest.mark.parametrize("options", [[], ["trainer.microbatch=4"], ["augment=edm"]], ids=str)
def test_flops_beside_a_step_are_those_of_the_step(build: Build, options: list[str]) -> None:
    trainer = build(*options)
    ours = count_next(trainer)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step()
    assert ours == pytest.approx(counter.get_total_flops() / trainer.options.batch, rel=0.01)


@pytest.mark.parametrize("options", [[], ["network.dropout=0.3", "augment=edm"], ["ema=power"]], ids=str)
def test_a_profiled_run_goes_on_as_if_it_had_never_been_profiled(build: Build, options: list[str]) -> None:
    whole, profiled = build(*options, run="whole"), build(*options, HOOK, run="profiled")
    assert whole.run()
    assert profiled.run()
    assert profiled.nimg == 7 * 16
    assert (profiled.run_dir / PROFILE).read_text().startswith("3 steps of 16 images, fp32, 1 process on ")
    profiled.close()
    second = build(*options, run="profiled")
    assert second.run()
    assert_same(states(whole)["weights"], states(second)["weights"])
    assert_same(states(whole)["training"], states(second)["training"])
    assert [row for row in states(second)["log"] if "end" not in row] == states(whole)["log"]


@pytest.mark.parametrize(
    ("method", "remembers"),
    [("f_distill", ["distiller.loss.bins.keep=0.9"]), ("disback", ["distiller.backtracking.threshold=0.9"])],
)
def test_a_profile_leaves_no_trace_in_a_method_that_remembers(
    distil: Build,  # noqa: F811
    method: str,
    remembers: list[str],
) -> None:
    options = ["trainer.total=56", "distiller.rhythm.every=1", *remembers]
    plain, profiled = (distil(method, *options, *more, run=str(len(more))) for more in ([], [HOOK]))
    assert plain.run()
    assert profiled.run()
    assert plain.nimg == profiled.nimg
    assert_same(states(plain)["weights"], states(profiled)["weights"])
    assert_same(states(plain)["training"], states(profiled)["training"])


def measured(**changes: object) -> Profile:
    values = {
        "title": "here",
        "images": 50,
        "steps": 4,
        "seconds": 2.0,
        "data_seconds": 0.5,
        "image_flops": 3e10,
        "rate": 1.2e13,
        "memory_gb": 1.5,
        "operators": [("conv", 0.5), ("norm", 0.25), ("copy", 0.125), ("add", 0.125)],
    }
    return Profile(**{**values, **changes})  # type: ignore[arg-type]


def test_the_figures_of_the_table_follow_from_what_was_measured() -> None:
    table = measured().table(top=2)
    for said in (
        "100.0 img/s, 500.0 ms a step",
        "30 GFLOP an image, 3 TFLOP/s",
        "25.0% of 12 TFLOP/s",
        "25.0% of a step",
        "1.50 GB",
        "25.0%  2 others",
    ):
        assert said in table


@pytest.mark.parametrize("top", [1, 2, 9])
def test_the_shares_of_time_add_up_to_the_whole(build: Build, top: int) -> None:
    trainer = build(HOOK, f"hooks.profile.top={top}")
    trainer.run()
    _, operators = (trainer.run_dir / PROFILE).read_text().split("operator\n")
    shares = [float(share) for share in re.findall(r"^ *([0-9.]+)%", operators, re.MULTILINE)]
    assert len(shares) == top + 1
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert shares[:-1] == sorted(shares[:-1], reverse=True)


def test_a_run_that_is_shorter_than_its_profile_is_refused(build: Build) -> None:
    with pytest.raises(UserError, match=r"takes 33 steps .* has 8 left: raise trainer.total, now 128"):
        build("debug=profile").run()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hooks.profile.steps=0", "hooks.profile.steps=0: an integer at least 1"),
        ("hooks.profile.every=5", "hooks.profile.every=5: unknown key"),
        ("debug=profil", "debug=profil: no such debug; did you mean profile?"),
    ],
)
def test_bad_settings_are_told(build: Build, setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("debug=profile", setting)


def test_a_profile_by_default_has_a_folder_of_its_own_and_runs_no_other_hook() -> None:
    cfg, _ = config.compose(["debug=profile"])
    active = [name for name, hook in cfg.hooks.items() if hook.get("every", 1) is not None]
    assert active == ["progress", "profile"]
    assert cfg.run_dir.startswith("runs/debug/digits_edm_profile_2")
