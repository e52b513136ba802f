"""Laws of the results page: it is what its records say, and each record is of one finished run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import ledger, measured
from benchmarks.record import Record, load, save
from benchmarks.recorder import PICTURE_BYTES, PICTURES, Told, from_run
from scoregen import config
from scoregen.data.digits import load_digits
from scoregen.errors import UserError
from scoregen.files import sha256

RECORDS, MEASURED = ledger.load_all(), measured.load_all()
TOLD = Told(
    method="a method", device="a CPU", commit="0" * 40, evaluated_on="a CPU", published="", difference="None."
)
OVERRIDES = ["experiment=digits_edm", "trainer.total=128"]
RESULT_FIELDS = {
    "n": 7,
    "nfe": 7,
    "values": [1.5, 2.5, 4.0],
    "curve": [[8, 9.0]],
    "seeds": "7-8",
    "extractor": "another",
    "extractor_sha256": "7" * 64,
    "resize": "another",
    "sampler": {"class": "Another"},
    "device": "another",
    "command": "another",
}


def test_the_page_is_what_the_records_say() -> None:
    assert ledger.render(RECORDS, MEASURED) == ledger.PAGE.read_text(), "run: python -m benchmarks.ledger"


def test_whatever_a_page_links_to_exists() -> None:
    page = ledger.PAGE.read_text()
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page)
    missing = [link for pair in targets for link in pair if link and not (ledger.PAGE.parent / link).exists()]
    assert targets
    assert missing == []


def test_every_picture_is_the_one_of_its_record() -> None:
    kept = {record.picture.file: record.picture for record in RECORDS.values() if record.picture}
    assert set(kept) == {str(path) for path in PICTURES.iterdir()}
    for file, picture in kept.items():
        assert sha256(Path(file)) == picture.sha256
        assert Path(file).stat().st_size < PICTURE_BYTES


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_traces_its_number(name: str) -> None:
    training, result = RECORDS[name].training, RECORDS[name].result
    assert result["value"] == pytest.approx(mean(result["values"]), rel=1e-12)
    assert (result["nimg"], result["weights_sha256"]) == (training.images, training.weights_sha256)
    assert re.fullmatch(r"(before )?[0-9a-f]{7,40}", training.commit)
    assert re.fullmatch(r"[0-9a-f]{16}", training.weights_sha256)
    hashes = (training.config_sha256, training.log_sha256, result["extractor_sha256"])
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes)
    assert bool(training.teacher) == bool(training.teacher_sha256)
    first, last = map(int, result["seeds"].split("-"))
    assert last - first + 1 == result["n"] * len(result["values"])
    assert result["command"] or result["curve"][-1] == [training.images, result["value"]]


@pytest.mark.parametrize("name", RECORDS)
def test_another_value_makes_another_page(name: str) -> None:
    page = ledger.PAGE.read_text()
    for changed in changes(RECORDS[name]):
        assert ledger.render({**RECORDS, name: changed}, MEASURED) != page, changed
    without = {other: RECORDS[other] for other in RECORDS if other != name}
    assert ledger.render(without, MEASURED) != page


def changes(record: Record) -> list[Record]:
    """The record with each of the values that a reader sees changed, one at a time."""
    training, result = record.training, record.result
    texts = ("command", "commit", "device", "precision", "weights_sha256", "config_sha256", "log_sha256")
    trained = [replace(training, **{key: "another"}) for key in texts]
    trained += [replace(training, seed=7), replace(training, images=7), replace(training, seconds=7.0)]
    measured = [{**result, key: value} for key, value in RESULT_FIELDS.items()]
    measured.append({**result, "value": 1.1 * result["value"], "values": [1.1 * v for v in result["values"]]})
    said = [replace(record, **{key: "another"}) for key in ("method", "data", "published", "difference")]
    return [
        *(replace(record, training=one) for one in trained),
        *(replace(record, result=one) for one in measured),
        *(replace(record, others=[{**other, "values": [7.0]}]) for other in record.others),
        *said,
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with two evaluations in its log."""
    cfg, _ = config.compose(OVERRIDES)
    (tmp_path / "config.yaml").write_text(config.to_yaml(cfg))
    rows = [{"nimg": n, "time": {"img_per_s": 64.0}} for n in (64, 128)]
    rows += [{"nimg": n, "fd_scatter": 1000.0 / n, "evaluated": 50} for n in (64, 128)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"nimg": 128, "weights": "checkpoints/128/ema.safetensors", "weights_sha256": "ab" * 8}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_record_holds_what_the_run_says(run: Path) -> None:
    record = from_run(run, OVERRIDES, None, "x", TOLD)
    assert (record.data, record.training.images, record.training.seconds) == ("digits", 128, 2.0)
    assert (record.result["value"], record.result["n"], record.result["nfe"]) == (1000 / 128, 50, 35)
    assert record.result["curve"] == [[64, 1000 / 64], [128, 1000 / 128]]
    save(run / "x.json", record)
    assert load(run / "x.json") == record


def write_metrics(run: Path, **changed: object) -> dict[str, object]:
    """A metrics.json as evaluate.py writes it."""
    sampler = {"class": "HeunSampler", "steps": 18, "state_dtype": "float32", "s_max": "inf"}
    sampler |= {"s_churn": 0.0, "s_min": 0.0, "s_noise": 1.0}
    measured = {"name": "fd_scatter", "value": 2.0, "values": [1.0, 3.0], "n": 50, "reference": "digits"}
    measured |= {"weights_sha256": "ab" * 8, "seeds": "0-99", "sampler": sampler, **changed}
    (run / "metrics.json").write_text(json.dumps([measured]))
    return measured


def test_what_evaluate_has_measured_counts(run: Path) -> None:
    measured = write_metrics(run)
    result = from_run(run, OVERRIDES, None, "x", TOLD).result
    assert {key: result[key] for key in measured} == measured
    assert "--num 50 --repeats 2 --metrics fd_scatter" in result["command"]


def test_other_metrics_go_along_with_what_they_compare_with(run: Path) -> None:
    held_out = load_digits(split="test").fingerprint
    write_metrics(run, name="kid", reference_fingerprint=held_out)
    record = from_run(run, OVERRIDES, None, "x", TOLD)
    assert record.result["value"] == 1000 / 128  # of the log, since evaluate.py has not measured it
    (kid,) = record.others
    assert kid["value"] == 2.0
    assert kid["command"].endswith("--num 50 --repeats 2 --metrics kid --reference digits:test")
    write_metrics(run, reference_fingerprint="of no split")
    with pytest.raises(UserError, match="no split"):
        from_run(run, OVERRIDES, None, "x", TOLD)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights_sha256": "cd" * 8}, "other weights"),
        ({"sampler": {"class": "EulerSampler", "steps": 18}}, "class"),
        ({"guidance": 2.0}, "guidance"),
        ({"seeds": "100-199"}, "seeds"),
    ],
)
def test_a_number_of_another_command_is_refused(run: Path, changed: dict[str, object], message: str) -> None:
    write_metrics(run, **changed)
    with pytest.raises(UserError, match=message):
        from_run(run, OVERRIDES, None, "x", TOLD)


def not_scored_at_the_end(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:-1]))


@pytest.mark.parametrize(
    ("spoil", "overrides", "told", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), OVERRIDES, TOLD, "only finished runs"),
        (lambda run: None, [*OVERRIDES, "optimizer.lr=0.5"], TOLD, r"another run.*\n.*optimizer\.lr"),
        (lambda run: None, OVERRIDES, replace(TOLD, commit=""), "commit unknown"),
        (lambda run: None, OVERRIDES, replace(TOLD, commit="1234567-dirty"), "run it anew"),
        (not_scored_at_the_end, OVERRIDES, TOLD, "not scored at its end"),
    ],
)
def test_no_record_without_its_run(run, spoil, overrides, told, message) -> None:
    spoil(run)
    with pytest.raises(UserError, match=message):
        from_run(run, overrides, None, "x", told)


def test_a_picture_is_of_the_run(run: Path) -> None:
    grid = run / "out"
    grid.mkdir()
    (grid / "grid.png").write_bytes(b"")
    (grid / "manifest.json").write_text(json.dumps({"weights_sha256": "cd" * 8, "seeds": [0, 1]}))
    with pytest.raises(UserError, match="samples of other weights"):
        from_run(run, OVERRIDES, grid, "x", TOLD)
