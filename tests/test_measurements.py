"""Laws of measurements: the page says what commands wrote, of models that the ledger knows."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ledger, measured
from benchmarks.measured import Measured, Outcome, load, save, table
from benchmarks.measurements import MEASUREMENTS, Case, Measurement, measure, outcome
from scoregen.errors import UserError
from scoregen.model import PRETRAINED, pretrained
from scoregen.training.weights import weights_hash

MEASURED = measured.load_all()
RECORDS = ledger.load_all()


def test_every_measurement_was_made() -> None:
    assert set(MEASURED) == set(MEASUREMENTS), "run: python -m benchmarks.measurements NAME"


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_run_is_what_is_planned(name: str) -> None:
    made = [Case(outcome.name, outcome.command, outcome.column) for outcome in MEASURED[name].outcomes]
    assert made == list(MEASUREMENTS[name].cases)
    assert re.fullmatch("[0-9a-f]{40}", MEASURED[name].origin["git"])


@pytest.mark.parametrize("name", MEASURED)
def test_every_model_is_one_of_the_ledger_or_comes_with_the_package(name: str) -> None:
    known = {record.training.weights_sha256 for record in RECORDS.values()}
    known |= {weights_hash(PRETRAINED / f"{path.rpartition('/')[2]}.safetensors") for path in pretrained()}
    for made in MEASURED[name].outcomes:
        assert measured.weights_of(made) <= known, made.command


@pytest.mark.parametrize("name", MEASURED)
def test_every_number_shows_on_the_page(name: str) -> None:
    page = ledger.PAGE.read_text()
    made = MEASURED[name]
    for k, one in enumerate(made.outcomes):
        for results in changed(one.results):
            outcomes = [*made.outcomes[:k], replace(one, results=results), *made.outcomes[k + 1 :]]
            assert ledger.render(RECORDS, {**MEASURED, name: replace(made, outcomes=outcomes)}) != page


def changed(results: Any) -> list[Any]:
    """What a command wrote, with each of its numbers changed, one at a time."""
    if isinstance(results, list):
        return [
            [*results[:k], {**result, "values": [7.7] * len(result["values"])}, *results[k + 1 :]]
            for k, result in enumerate(results)
        ]
    part = "separation" if "separation" in results else "table"
    return [
        {**results, part: {**rows, row: {**cells, kind: {**value, "auroc": 0.123}}}}
        for rows in [results[part]]
        for row, cells in rows.items()
        for kind, value in cells.items()
        if kind != "changed"
    ]


def writing(results: Any) -> str:
    """A command that writes this."""
    return shlex.join(["python", "-c", f"import sys; open(sys.argv[2], 'w').write({json.dumps(results)!r})"])


def evaluated(name: str, *values: float, nfe: int = 9, **details: float) -> dict[str, Any]:
    """A result as evaluate.py writes it."""
    of_model = {"nfe": nfe, "n": 50, "seeds": "0-99", "weights_sha256": "ab" * 8}
    return {
        "name": name,
        "value": sum(values) / len(values),
        "values": values,
        "details": details,
        **of_model,
    }


def test_a_row_for_each_command_and_a_column_for_each_number() -> None:
    outcomes = [
        Outcome(
            "a",
            "",
            "python a",
            1.0,
            [evaluated("fd", 1.0, 3.0), evaluated("copies", 0.25, c_t_pixels=7.0, other=1.0)],
        ),
        Outcome("b", "", "python b", 1.0, [evaluated("fd", 2.5, nfe=11)]),
    ]
    assert table(Measured("a CPU", {}, outcomes)).splitlines() == [
        "| | fd | copies | c_t_pixels | n | NFE |",
        "|---|--:|--:|--:|--:|--:|",
        "| a | 2.0 ± 1.4 | 0.250 | 7 | 50 | 9 |",
        "| b | 2.50 |  |  | 50 | 11 |",
    ]


def test_a_column_for_each_budget() -> None:
    outcomes = [
        Outcome(name, f"{nfe} evaluations", "python a", 1.0, [evaluated("fd", 1.0 + nfe, nfe=nfe)])
        for nfe in (9, 11)
        for name in ("heun", "deis")
        if (name, nfe) != ("deis", 11)
    ]
    assert table(Measured("a CPU", {}, outcomes)).splitlines()[::2] == [
        "| | 9 evaluations | 11 evaluations |",
        "| heun | 10.0 | 12.0 |",
    ]


def test_a_row_for_each_set_of_outliers_and_each_attack() -> None:
    separation = {"auroc": 0.91, "fpr95": 0.125, "error": 0.1, "tpr": [0.5, 0.6, 0.7]}
    sets = {"model": {}, "separation": {"kmnist": {"knn": separation}}}
    attacks = {"model": {}, "table": {"fgsm 2/255": {"changed": 0.05, "eps": separation}}}
    outcomes = [Outcome("mnist", "", "python a", 1.0, sets), Outcome("digits", "", "python b", 1.0, attacks)]
    assert table(Measured("a CPU", {}, outcomes)).splitlines() == [
        "| | knn: AUROC / FPR@95 (%) | changed answers (%) | eps: AUROC / TPR@1% (%) |",
        "|---|--:|--:|--:|",
        "| mnist: kmnist | 91.00 / 12.50 |  |  |",
        "| digits: fgsm 2/255 |  | 5.0 | 91.00 / 50.0 |",
    ]


def test_an_outcome_is_what_the_command_wrote_but_for_scores_of_single_images(tmp_path: Path) -> None:
    command = writing([evaluated("fd", 2.0)])
    made = outcome(Case("x", command))
    assert made.command == command
    assert made.results == json.loads(json.dumps([evaluated("fd", 2.0)]))
    assert outcome(Case("x", writing({"scores": [1], "separation": 2}))).results == {"separation": 2}
    whole = Measured("a CPU", {"git": "0" * 40}, [made])
    save(tmp_path / "x.json", whole)
    assert load(tmp_path / "x.json") == whole


def test_a_failed_command_ends_the_measurement_with_its_message() -> None:
    with pytest.raises(UserError, match=r"evaluate\.py --num 0\n.*--num 0: at least 1"):
        measure(Measurement("", "", [], before=[("python evaluate.py --num 0", "no/such/path")]), "a CPU")


def test_sources_that_are_not_committed_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measurements.provenance", lambda: {"git": "1234567-dirty"})
    with pytest.raises(UserError, match="1234567-dirty: commit first"):
        measure(Measurement("", "", []), "a CPU")
