"""Laws of the comparison of two records."""

from dataclasses import asdict
from typing import Any

import pytest

from scoregen.evaluation.result import Result, differences, obstacles, protocol

RECORD: dict[str, Any] = {
    **asdict(
        Result(
            "fid_2000",
            30.0,
            2000,
            "inception",
            "a" * 64,
            "TF1 bilinear",
            "pool",
            "cifar10",
            "f" * 64,
            "b" * 64,
            50_000,
        )
    ),
    "sampler": {"class": "HeunSampler", "steps": 18},
    "nfe": 35,
    "seeds": "0-1999",
}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("n", 2001, "number of images: 2000 against 2001"),
        ("name", "kid", "metric: fid_2000 against kid"),
        ("extractor_sha256", "c" * 64, "extractor's weights: aaaaaaaa against cccccccc"),
        ("layer", "spatial", "features: pool against spatial"),
        ("resize", "bicubic", "resize rule: TF1 bilinear against bicubic"),
        ("latents", "scrambled Sobol", "latents: none against scrambled Sobol"),
        ("reference_fingerprint", "e" * 64, "reference: cifar10 bbbbbbbb against cifar10 bbbbbbbb"),
        ("reference_n", 10_000, "reference: cifar10 bbbbbbbb against cifar10 bbbbbbbb"),
    ],
)
def test_what_makes_another_quantity_is_an_obstacle(key: str, value: object, told: str) -> None:
    assert obstacles(RECORD, {**RECORD, key: value}) == [told]
    assert obstacles({**RECORD, key: value}, RECORD) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [("value", 31.0), ("seeds", "2000-3999"), ("nfe", 13), ("weights_sha256", "d" * 64), ("run", "runs/b")],
)
def test_what_a_comparison_is_about_is_none(key: str, value: object) -> None:
    other = {**RECORD, key: value}
    assert obstacles(RECORD, other) == []
    assert bool(differences(RECORD, other)) == (key not in ("value", "seeds"))


def test_of_settings_only_those_that_differ_are_told() -> None:
    sampler = {"class": "HeunSampler", "steps": 18, "grid": {"class": "KarrasGrid", "rho": 7.0}}
    other = {**sampler, "steps": 9, "grid": {"class": "KarrasGrid", "rho": 5.0}}
    assert differences({**RECORD, "sampler": sampler}, {**RECORD, "sampler": other}) == [
        "sampler.steps: 18 against 9",
        "sampler.grid.rho: 7.0 against 5.0",
    ]


def test_the_same_data_are_one_reference_however_their_statistics_were_rounded() -> None:
    assert obstacles(RECORD, {**RECORD, "reference_sha256": "9" * 64}) == []
    foreign = {**RECORD, "reference_fingerprint": "", "reference": ""}
    assert obstacles(foreign, {**foreign, "reference_sha256": "9" * 64}) == [
        "reference: a file bbbbbbbb against a file 99999999"
    ]


def test_the_protocol_line_holds_everything() -> None:
    assert protocol({**RECORD, "latents": "scrambled Sobol"}) == (
        "n = 2,000; inception/pool aaaaaaaa; resize: TF1 bilinear; "
        "reference cifar10 (50,000 images) bbbbbbbb; HeunSampler, 35 evaluations; "
        "latents scrambled Sobol; seeds 0-1999"
    )
