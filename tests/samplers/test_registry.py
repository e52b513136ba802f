"""What registering a sampler promises: a configuration, and where it is from."""

import pytest

from scoregen import config
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
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
