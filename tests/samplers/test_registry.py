"""What registering a sampler promises: a configuration, where it is from, a row in the table and the docs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen import config
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.diffusion.grids import KarrasGrid
from scoregen.rng import generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.table import OF_DATA, format_table, sampler_table
from scoregen.samplers.unipc import UniPCSampler
from scoregen.validation import check_choice

EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


@EVERY_SAMPLER
def test_every_sampler_has_a_configuration_of_its_own_defaults(name: str) -> None:
    cfg, problems = config.choose("sampler", name, [])
    assert problems + check_choice(cfg, "sampler") == []
    sampler: Sampler = config.instantiate(cfg)
    assert type(sampler) is SAMPLERS[name]
    assert sampler == SAMPLERS[name](steps=sampler.steps, grid=sampler.grid)


@EVERY_SAMPLER
def test_every_sampler_says_where_it_is_from(name: str) -> None:
    assert "arXiv" in SAMPLERS[name].reference or "diffusers" in SAMPLERS[name].reference


def test_the_table_tells_what_a_number_of_steps_costs() -> None:
    rows = {row.name: row for row in sampler_table(10)}
    assert list(rows) == [*SAMPLERS, *OF_DATA]
    costs = {"euler": 10, "heun": 19, "unipc": 10, "restart": 27, "predictor_corrector": 20, "one_step": 1}
    assert {name: rows[name].nfe for name in costs} == costs
    assert rows["heun"].order == 2
    assert not rows["euler_ancestral"].deterministic
    assert "| `ddim` | 1 | 10 | yes | Song et al. 2020" in format_table([rows["ddim"]])


@EVERY_SAMPLER
def test_every_sampler_is_in_the_docs(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "samplers.md"
    assert f"`{name}`" in page.read_text()


def test_the_default_of_13_evaluations_ends_nearer_to_the_flow_than_heuns_35() -> None:
    means = torch.randn(16, 32, generator=generator("means"), dtype=torch.float64) / 2
    denoiser = GaussianMixtureDenoiser(means, torch.tensor(0.05**2, dtype=torch.float64))
    noise = torch.randn(64, 32, generator=generator("noise"), dtype=torch.float64)
    exact = UniPCSampler(500, KarrasGrid(1e-4, 80.0), "float64")(denoiser, noise)

    def error(sampler: Sampler) -> Tensor:
        return (sampler(denoiser, noise) - exact).norm(dim=1).median()

    auto: Sampler = config.instantiate(config.choose("sampler", "auto", [])[0])
    assert (auto.nfe(), HeunSampler().nfe()) == (13, 35)
    assert error(auto) < error(HeunSampler()) / 2
