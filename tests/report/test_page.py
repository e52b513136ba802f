"""Laws of the report: it is whole by itself, valid, and shows what the run folder holds."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from scoregen import config
from scoregen.cli.source import Source
from scoregen.data.digits import load_digits
from scoregen.denoisers.moments import measure_gaussian
from scoregen.errors import UserError
from scoregen.images import to_png
from scoregen.objectives.base import SIGMA_BINS
from scoregen.report.page import Content, Picture, render
from scoregen.report.run import earlier_samples, training_seconds, write_report
from scoregen.samplers.edm import HeunSampler

VOID = {"meta", "img", "br", "link", "hr", "input"}
ROWS = [
    {
        "nimg": 1000 * k,
        "loss": 1.0 / k,
        "loss_by_sigma": [0.1 * k + 0.01 * i if i else None for i in range(SIGMA_BINS)],
        "grad_norm": 0.5 + k,
        "skipped": k % 2,
        "lr": 0.002,
        "accuracy": 0.9,
        "time": {"img_per_s": 100.0 * k, "ms_per_step": 1.0, "seconds_left": 0.0, "memory_gb": 0.4},
    }
    for k in (1, 2, 4)
]
RECORDS = [
    {
        "name": "fd_scatter", "value": 2.5, "values": [2.25, 2.75], "n": 1617, "spread": 0.125,
        "extractor": "scatter", "extractor_sha256": "ab" * 32, "resize": "none", "reference": "digits",
        "reference_sha256": "cd" * 32, "reference_n": 1617, "seeds": "0-3233", "nfe": 35,
        "sampler": {"class": "HeunSampler"}, "note": "a <note>", "details": {"error": 0.03125},
    }
]  # fmt: skip


FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--dump-dom", "--window-size=500,900"),
)
PROBE = """addEventListener("load", () => {
    const whole = [...document.images].every(image => image.complete && image.naturalWidth > 0);
    document.title = whole + " " + (document.documentElement.scrollWidth <= innerWidth);
})"""


class Outline(HTMLParser):
    """Checks that elements close in order, and keeps text, addresses and ids of interest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page() -> str:
    """A report with everything in it, and names that would break a page that does not escape them."""
    png = to_png(torch.zeros(1, 4, 4, dtype=torch.uint8))
    return render(
        Content(
            'run <1> & "2"',
            "weights </p>",
            facts={"images <seen>": "4,000"},
            rows=ROWS,
            samples=[Picture(png, "grid <0>")],
            neighbours=Picture(png, "pairs"),
            records=RECORDS,
            config="lr: 0.002 # <b>",
        )
    )


def test_elements_close_in_order_and_text_is_escaped(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    for text in ('run <1> & "2"', "weights </p>", "images <seen>", "grid <0>", "lr: 0.002 # <b>", "a <note>"):
        assert text in outline.text


def test_a_report_asks_for_nothing_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    assert outline.addresses
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(outline.tags)
    assert not re.search(r"url\(|@import|https?://|//\w", page.replace("</", ""))


def test_pictures_are_in_the_file_bit_for_bit(page: str) -> None:
    inside = [base64.b64decode(address.partition(",")[2]) for address in Outline(page).addresses]
    assert inside == [to_png(torch.zeros(1, 4, 4, dtype=torch.uint8))] * 2


def test_every_value_of_the_log_is_on_the_page(page: str) -> None:
    text = Outline(page).text
    for row in ROWS:
        at = f"{row['nimg']:,}"
        assert f"training: {row['loss']:.6g} at {at}" in text
        assert f"gradient norm: {row['grad_norm']:.6g} at {at}" in text
        assert f"images a second: {row['time']['img_per_s']:.6g} at {at}" in text
        assert f"accuracy: 0.9 at {at}" in text
        losses = [value for value in row["loss_by_sigma"] if value is not None]
        assert all(f": {value:.6g} at {at}" in text for value in losses)


def test_metrics_come_with_mean_spread_and_protocol(page: str) -> None:
    text = Outline(page).text
    numbers = ("fd_scatter", "2.5", "2.25", "2.75", "0.125", "1,617", "error 0.03125")
    protocol = ("reference digits (1,617 images) cdcdcdcd", "HeunSampler, 35 evaluations", "seeds 0-3233")
    for part in (*numbers, *protocol):
        assert part in text


def test_what_is_not_there_is_left_out() -> None:
    outline = Outline(render(Content("run", "weights")))
    assert outline.open == []
    assert "h2" not in outline.tags


def test_the_time_of_training_is_that_of_its_steps() -> None:
    """1,000 images at 100 a second, 1,000 at 200, 2,000 at 400; a row of no new images adds nothing."""
    assert training_seconds([*ROWS, ROWS[-1]]) == pytest.approx(10 + 5 + 5)


def test_earlier_grids_are_those_before_the_weights(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for nimg in (10, 20, 30, 40):
        (tmp_path / "samples" / f"{nimg:012d}.png").write_bytes(b"%d" % nimg)
    (tmp_path / "samples" / "mine.png").write_bytes(b"")
    assert [p.png for p in earlier_samples(tmp_path, before=40)] == [b"30", b"20"]


def source(run_dir: Path | None) -> Source:
    """A Gaussian of the digits in the place of a trained model."""
    data = load_digits(conditional=False)
    cfg, _ = config.compose([])
    manifest = {"nimg": 4000, "weights_sha256": "ab"}
    return Source(measure_gaussian(data), cfg, "a Gaussian", manifest, lambda: data, run_dir)


def write(run_dir: Path) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (run_dir / "metrics.json").write_text(json.dumps(RECORDS))
    return write_report(source(run_dir), HeunSampler(steps=4), "Heun: 4 steps", batch=64, device="cpu")


def test_a_report_of_a_run_folder_shows_samples_and_their_nearest_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a run")
    outline = Outline(path.read_text())
    assert path == tmp_path / "a run" / "report.html"
    assert "the 8 of 64 samples closest to training images, above their nearest of 1,617" in outline.text
    assert "Heun: 4 steps" in outline.text
    assert outline.tags.count("img") == 2
    again = write(tmp_path / "a run")
    assert again.read_bytes() == path.read_bytes()


def test_only_a_run_folder_has_a_report() -> None:
    with pytest.raises(UserError, match="--report is of a run folder"):
        write_report(source(None), HeunSampler(), "", batch=64, device="cpu")


def test_a_browser_renders_it_without_a_network(tmp_path: Path) -> None:
    """Every image loads, and at the width of a phone nothing sticks out."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    report = write(tmp_path / "run")
    probed = tmp_path / "probed.html"
    probed.write_text(report.read_text().replace("</body>", f"<script>{PROBE}</script></body>"))
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>true true</title>" in dom
