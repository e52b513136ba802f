"""Laws of the benchmarks' own arithmetic; what they measure is not tested."""

import pytest

from benchmarks.interleaved import median_seconds
from benchmarks.network_speed import LIBRARIES
from benchmarks.run import SUITES, Outcome, section
from benchmarks.scaling_plan import NETWORK_BANDWIDTH, NODE, NODE_BANDWIDTH, step_seconds, volume


def test_work_is_interleaved_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = median_seconds({name: lambda name=name: order.append(name) for name in "abc"}, rounds=4)
    assert order == list("abc") * 5
    assert list(seconds) == list("abc")


def test_a_page_holds_every_line_that_was_printed() -> None:
    lines = ["three words here", "", "| a | b |", "|---|---|", "| 1 | 2 |", "", "| c |", "ratio 4"]
    text = section("machine", 1.5, {"x": Outcome("Title", "python -m x", lines, 0)})
    assert [line for line in text.splitlines() if line in lines and line] == [line for line in lines if line]
    assert "```\nthree words here\n```\n\n| a | b |" in text
    assert "| 1 | 2 |\n\n| c |\n\n```\nratio 4\n```" in text


def test_the_suite_names_scripts_that_exist() -> None:
    from importlib.util import find_spec

    assert all(find_spec(f"benchmarks.{name}") for name in SUITES)
    assert len({library.__name__ for library in LIBRARIES}) == len(LIBRARIES)


@pytest.mark.parametrize("gpus", [2, 8, 16, 64])
def test_each_gpu_sends_all_gradients_but_its_own_share_twice(gpus: int) -> None:
    share = 4 * 1_000_000 / gpus
    assert volume(1_000_000, gpus) == pytest.approx(2 * (gpus - 1) * share)
    assert volume(1_000_000, 1) == 0


@pytest.mark.parametrize("gpus", [2, NODE, 2 * NODE])
def test_sending_costs_nothing_until_it_takes_longer_than_the_backward(gpus: int) -> None:
    bandwidth = NODE_BANDWIDTH if gpus <= NODE else NETWORK_BANDWIDTH
    assert step_seconds(3.0, 2.0 * bandwidth, gpus) == pytest.approx(3.0)
    assert step_seconds(3.0, 2.5 * bandwidth, gpus) == pytest.approx(3.5)
    assert step_seconds(0.0, 1.0 * bandwidth, gpus) == pytest.approx(1.0)
