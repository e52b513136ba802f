"""Laws of the metrics by name, of their results, and of sums over processes."""

import os
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from scoregen.errors import UserError
from scoregen.evaluation.evaluator import Evaluator, evaluate
from scoregen.evaluation.features import EXTRACTORS, build_extractor
from scoregen.evaluation.frechet import Moments, frechet_distance
from scoregen.evaluation.metrics import METRICS, Metric, check_metrics, check_number
from scoregen.evaluation.processes import Alone
from scoregen.evaluation.reference import measure, reference_of
from scoregen.evaluation.scatter import ScatterExtractor
from tests.evaluation.conftest import Held


class Counting(ScatterExtractor):
    """Counts the images that it sees, under the name that a test registers."""

    name = "counting"
    seen = 0

    def features(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        return super().features(images)


def test_only_the_published_features_at_50000_images_are_called_fid() -> None:
    assert METRICS["fid"].name("fid", 50_000) == "fid"
    assert METRICS["fid"].name("fid", 49_999) == "fid_49999"
    assert METRICS["fid"].name("fid", 100_000) == "fid_100000"
    assert METRICS["fd_scatter"].name("fd_scatter", 49_999) == "fd_scatter"
    assert {m.extractor for name, m in METRICS.items() if name.startswith("fid")} == {"inception"}
    assert {m.layer for name, m in METRICS.items() if name.startswith("fid")} == {""}


def test_every_extractor_but_inception_has_its_own_frechet_distance() -> None:
    distances = {name for name in METRICS if name.startswith("fd_")}
    assert distances == {f"fd_{name}" for name in EXTRACTORS if name != "inception"}


def test_unknown_names_are_told_at_once_with_the_near_ones() -> None:
    with pytest.raises(UserError) as error:
        check_metrics(["fdi", "fid", "fd_scater"])
    assert str(error.value) == (
        f"metrics not known: fdi, fd_scater; allowed: {', '.join(METRICS)}; "
        "did you mean fid?; did you mean fd_scatter?"
    )
    with pytest.raises(UserError, match="no metrics were named"):
        check_metrics([])
    with pytest.raises(UserError, match="did you mean scatter"):
        build_extractor("scater")


def test_a_result_says_what_it_is_a_function_of(digits: Tensor) -> None:
    real, drawn = digits[:800], digits[800:]
    results = evaluate(drawn.split(100), ["fd_scatter"], Held(real))
    (name, result), extractor = results.popitem(), ScatterExtractor()
    reference = reference_of(Held(real), extractor)
    moments = measure([drawn], extractor)
    assert not results
    assert name == result.name == "fd_scatter"
    assert result.value == pytest.approx(frechet_distance(moments.summary(), reference.gaussian), rel=1e-9)
    assert (result.n, result.reference_n) == (len(drawn), 800)
    assert (result.extractor, result.extractor_sha256) == ("scatter", extractor.sha256)
    assert result.reference_sha256 == reference.sha256
    assert result.note == ""


def test_real_images_score_about_the_floor_of_both_samples(digits: Tensor) -> None:
    """E[FD] of two samples of one distribution is about the sum of their biases."""
    half = len(digits) // 2
    (result,) = evaluate([digits[half:]], ["fd_scatter"], Held(digits[:half])).values()
    assert result.value == pytest.approx(2 * result.floor, rel=0.25)


def test_few_images_are_scored_with_a_warning(digits: Tensor) -> None:
    (result,) = evaluate([digits[:100]], ["fd_scatter"], Held(digits[100:])).values()
    assert "n = 100 does not exceed the 164 features" in result.note
    with pytest.raises(UserError, match="at least 2 images"):
        evaluate([digits[:1]], ["fd_scatter"], Held(digits))


def test_images_of_another_size_are_scored_with_a_warning(digits: Tensor) -> None:
    enlarged = digits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    (result,) = evaluate([enlarged], ["fd_scatter"], Held(digits)).values()
    assert result.note == "images of (16, 16) pixels against real ones of (8, 8): the size counts, too"


def test_features_are_computed_once_for_all_metrics_of_an_extractor(
    digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = Counting()
    monkeypatch.setitem(EXTRACTORS, "counting", lambda weights, device: extractor)
    for name in ("first", "second"):
        monkeypatch.setitem(METRICS, name, replace(METRICS["fd_scatter"], extractor="counting"))
    judge = Evaluator(["first", "second", "first"], Held(digits[:300]))
    judge(digits[300:500].split(64))
    assert extractor.seen == 300 + 200


def test_an_evaluator_judges_any_number_of_streams(digits: Tensor) -> None:
    judge = Evaluator(["fd_scatter"], Held(digits[:800]))
    first, other, again = (judge([x])["fd_scatter"].value for x in (digits[800:], digits[:400], digits[800:]))
    assert first == again != other


def test_the_torchmetrics_metric_is_the_same_number_and_adds_over_processes(digits: Tensor) -> None:
    from scoregen.evaluation.torchmetric import FrechetDistance

    extractor = ScatterExtractor()
    reference = reference_of(Held(digits[:800]), extractor).gaussian
    metric = FrechetDistance(extractor, reference)
    for batch in digits[800:].split(97):
        metric.update(batch)
    whole = frechet_distance(measure([digits[800:]], extractor).summary(), reference)
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(whole, rel=1e-9)
    alone = metric.outer.clone()
    metric.sync(dist_sync_fn=lambda state, group=None: [state, state], distributed_available=lambda: True)
    assert float(metric.n) == 2 * len(digits[800:])
    assert torch.equal(metric.outer, 2 * alone)
    metric.unsync()
    metric.reset()
    assert float(metric.n) == 0


class Gloo(Alone):
    """Two real processes, without the rest of the framework."""

    def __init__(self, rank: int, world: int, file: str) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{file}", rank=rank, world_size=world
        )
        self.rank, self.world = rank, world

    def sum(self, tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag))))


class Meeting(Alone):
    """One process that counts how often it meets the others."""

    def __init__(self) -> None:
        self.met = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.met += 1
        return tensor

    def any(self, flag: bool) -> bool:
        self.met += 1
        return flag


def test_processes_meet_no_more_often_for_more_batches(
    digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, metric in on_scatter().items():
        monkeypatch.setitem(METRICS, name, metric)
    met = []
    for size in (300, 50):
        processes = Meeting()
        Evaluator(list(METRICS), Held(digits[:300]), processes=processes)(digits[300:1000].split(size))
        met.append(processes.met)
    assert met[0] == met[1] > 0


def on_scatter() -> dict[str, Metric]:
    """Every registered metric, on features that need no weights; they pass for logits, too."""
    return {name: replace(metric, extractor="scatter", layer="") for name, metric in METRICS.items()}


def _judge_a_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    METRICS.update(on_scatter())
    images = torch.load(f"{folder}/digits.pt", weights_only=True)
    processes = Gloo(rank, 2, f"{folder}/meet")
    share = images[800:1401][rank::2]  # 301 images and 300
    cache = Path(folder) / "cache"
    judge = Evaluator(list(METRICS), Held(images[:799]), cache=cache, processes=processes)
    results = judge(share.split(64))
    rows = [[result.value, float(result.n), float(result.reference_n)] for result in results.values()]
    torch.save(torch.tensor(rows, dtype=torch.float64), f"{folder}/result{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shares_get_the_numbers_of_one(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every registered metric; neither the images nor the reference divide."""
    torch.save(digits, tmp_path / "digits.pt")
    multiprocessing.spawn(_judge_a_share, (str(tmp_path),), nprocs=2)
    for name, metric in on_scatter().items():
        monkeypatch.setitem(METRICS, name, metric)
    alone = evaluate([digits[800:1401]], list(METRICS), Held(digits[:799]))
    rows = [[result.value, result.n, result.reference_n] for result in alone.values()]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"result{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert len(os.listdir(tmp_path / "cache")) == 1


@pytest.mark.parametrize("name", METRICS)
def test_as_many_images_as_a_metric_asks_for_are_enough(
    name: str, digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 164 features; the extrapolated Frechet distance needs twice as many images as features."""
    metric = on_scatter()[name]
    least = metric.least - 2 * (2048 - 164) if name == "fid_inf" else metric.least
    monkeypatch.setitem(METRICS, name, metric)
    (result,) = evaluate([digits[:least]], [name], Held(digits)).values()
    assert result.n == least
    assert isfinite(result.value)
    with pytest.raises(UserError, match=f"{name} at least"):
        check_number(["fid", name], metric.least - 1)


def test_a_process_without_images_adds_nothing(digits: Tensor) -> None:
    moments = measure([digits], ScatterExtractor())
    merged = moments.merge(measure([], ScatterExtractor())).merge(Moments(164))
    assert torch.equal(merged.outer, moments.outer)


@pytest.mark.data
def test_a_small_fid_is_named_after_its_n_and_says_its_bias(weights: Path) -> None:
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (12, 3, 32, 32), generator=g, dtype=torch.uint8)
    result = evaluate([noise[:5]], ["fid"], Held(noise[5:]), weights={"inception": weights})["fid_5"]
    assert "n = 5 does not exceed the 2048 features" in result.note
    assert result.reference_n == 7
    assert result.value > 0
