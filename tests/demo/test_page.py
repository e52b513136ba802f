"""Laws of the page as it is served: at loopback only, bounded, and whole after whatever is sent to it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scoregen.demo.__main__ import LOOPBACK, main
from scoregen.demo.request import Limits
from scoregen.demo.studio import CLOSED_FORM, Card, Studio
from scoregen.errors import UserError
from tests.cli.conftest import ROOT
from tests.demo.browser import Browser, find_browser

gradio = pytest.importorskip("gradio", reason="needs the extra demo")

from gradio_client import Client  # noqa: E402 - comes with gradio

from scoregen.demo.page import _card, build_page, listen  # noqa: E402

WAITING = 4
DEFAULTS = ["runs/digits", 0, 4, "", "the model's own", "steps", "2", 1.0, "", "", "", 2.0]
PLACES = ["model", "seed", "images", "label", "sampler", "unit", "budget", "guidance", "above", "up_to"]
PLACES += ["settings", "smoothing"]


def values(**changed: Any) -> list[Any]:
    """What the controls send."""
    return [changed.get(name, value) for name, value in zip(PLACES, DEFAULTS, strict=True)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[tuple[Studio, str]]:
    """A studio on the trained runs with room for a few requests in the queue, and where its page is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        patch.setenv("GRADIO_TEMP_DIR", str(trained / "page"))
        studio = Studio(device="cpu", limits=Limits(images=16, evaluations=50, waiting=WAITING))
        page = build_page(studio)
        yield studio, listen(page, LOOPBACK, free_port())
        page.close()
        studio.close()


@pytest.fixture(scope="module")
def url(served: tuple[Studio, str]) -> str:
    return served[1]


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def draw(client: Client, **changed: Any) -> list[Any]:
    return list(client.predict(*values(**changed), api_name="/draw"))


def test_a_request_over_http_gets_pictures_command_and_files(client: Client) -> None:
    message, pictures, command, files = draw(client, label="3", seed=5)
    assert "HeunSampler: 2 steps, 3 network evaluations per image" in message
    assert pictures.count("data:image/png;base64,") == 1 + 2  # the images, and two moments
    assert command == "python sample.py --run runs/digits --steps 2 --seeds 5-8 --class 3 --device cpu"
    names = {Path(file).name: Path(file) for file in files["value"]}
    with np.load(names["samples.npz"]) as samples:
        assert samples["seeds"].tolist() == [5, 6, 7, 8]
        assert samples["labels"].tolist() == [3] * 4


BAD = [
    {"images": 17},
    {"images": 10**9},
    {"images": None},
    {"seed": -1},
    {"seed": "0; rm"},
    {"budget": "1e9"},
    {"budget": "many"},
    {"budget": "-3"},
    {"label": "11"},
    {"label": "<script>alert(1)</script>"},
    {"guidance": 2.0, "above": "5", "up_to": "1"},
    {"guidance": "NaN"},
    {"sampler": "closed_form"},
    {"sampler": "no such"},
    {"settings": "s_churn=${oc.env:HOME}"},
    {"settings": "x" * 100_000},
    {"model": "/etc/passwd"},
    {"model": None},
    {"model": ["runs/digits"]},
    {"unit": {"a": 1}},
]


def test_bad_input_is_told_without_a_traceback_and_the_page_goes_on(client: Client) -> None:
    for changed in BAD:
        try:
            message, *others = draw(client, **changed)
        except Exception as error:  # gradio's own checks of what a control may send
            message = f'role="alert">{error}'
        else:
            assert all(not other or "update" in str(other) for other in others), changed
        assert 'role="alert">' in message, changed
        assert "Traceback" not in message, changed
        assert "<script" not in message, changed
    assert 'role="status">' in draw(client, budget="1")[0]


def test_twenty_requests_at_once_are_answered_or_turned_away(served: tuple[Studio, str]) -> None:
    studio, url = served
    client = Client(url, verbose=False, max_workers=20)
    with studio._busy:  # none is answered before all have come
        jobs = [client.submit(*values(), api_name="/draw") for _ in range(20)]
        while sum(job.done() for job in jobs) < 20 - WAITING - 1:
            time.sleep(0.02)
    refusals = [error for job in jobs if (error := job.exception()) is not None]
    assert all("queue is full" in str(error).lower() for error in refusals), refusals
    answers = [job.result()[0] for job in jobs if job.exception() is None]
    assert all("2 steps, 3 network evaluations" in answer for answer in answers)
    assert WAITING <= len(answers) <= WAITING + 1
    assert "2 steps" in draw(client)[0]


def status(url: str, data: Any = None) -> int:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_passes_the_queue_or_reads_a_file(url: str, trained: Path) -> None:
    assert status(f"{url}gradio_api/run/draw", {"data": values()}) >= 400
    for path in ("/etc/passwd", f"{trained}/runs/digits/config.yaml", "runs/digits/config.yaml"):
        assert status(f"{url}gradio_api/file={path}") in (403, 404)
    assert status(url) == 200


def test_only_loopback_is_listened_at(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):  # noqa: PT011
        pass


def test_a_port_in_use_is_told(here: Path) -> None:
    studio = Studio(device="cpu")
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be listened at"):
            listen(build_page(studio), LOOPBACK, port)
    studio.close()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "nowhere: no such run folder or weights file"),
        (["empty"], "empty holds no checkpoint"),
        (["--images", "0"], "--images 0: at least 1"),
        (["--device", "tpu"], "device=tpu is not known"),
        (["--port", "99999999"], "cannot be listened at"),
    ],
)
def test_the_entry_refuses_bad_flags(
    args: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir(exist_ok=True)
    assert main(args) == 2
    assert said in capsys.readouterr().err


def test_without_gradio_the_entry_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "scoregen.demo.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([]) == 2
    assert "pip install 'scoregen[demo]'" in capsys.readouterr().err


def test_help_and_studio_need_no_gradio() -> None:
    code = (
        "import sys, scoregen.demo.studio; from scoregen.demo.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'gradio' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Only this machine reaches the page" in done.stdout


def test_the_entry_serves_until_it_is_ended_and_leaves_nothing_behind(trained: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "scoregen.demo", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=trained, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"http://{LOOPBACK}:{port}/" in process.stdout.readline()
    assert "2 steps" in draw(Client(f"http://{LOOPBACK}:{port}/", verbose=False))[0]
    process.terminate()
    assert process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_browser_draws_slides_and_is_told_what_is_wrong(
    url: str, tmp_path: Path, width: int, height: int
) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with Browser(program, tmp_path, width=width, height=height) as browser:
        browser.open(url)
        assert "128 images" in browser.wait_for("document.querySelector('#card .told').textContent")
        browser.run("document.querySelector('#draw').click()")
        browser.wait_for("document.querySelector('.grid img').naturalWidth > 0")
        assert "18 steps" in browser.run("document.querySelector('#message').textContent")
        slide = (
            "(() => { const slider = document.querySelector('.film input'); slider.value = 3;"
            " slider.dispatchEvent(new Event('input'));"
            " return [...document.querySelectorAll('.frame')].filter(f => f.offsetParent)"
            ".map(f => f.textContent) })()"
        )
        assert [caption.partition(",")[0] for caption in browser.run(slide)] == ["step 4 of 18"]
        too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not browser.run(too_wide)
        budget = (
            "const field = document.querySelector('#budget textarea, #budget input'); field.value = 'many';"
        )
        browser.run(f"(() => {{ {budget} field.dispatchEvent(new Event('input', {{bubbles: true}})) }})()")
        browser.run("document.querySelector('#draw').click()")
        refusal = browser.wait_for("document.querySelector('#message .refused').textContent")
        assert refusal == "number of steps or evaluations many: a number is expected"
        assert browser.run("document.querySelector('.grid img').naturalWidth > 0"), "the images stay"
    hosts = {re.split("[/:]", address)[3] for address in browser.requested if address.startswith("http")}
    assert hosts == {LOOPBACK}


def test_a_class_is_forgotten_where_the_next_model_has_none() -> None:
    """The field is hidden then, and what it held would be refused."""
    studio = SimpleNamespace(card=lambda name: Card(name, 10 if name == "classes" else 0, "", False))
    with_classes, without = (_card(studio, name)[1] for name in ("classes", "none"))
    assert (with_classes.visible, with_classes.label) == (True, "Class, 0 to 9")
    assert (without.visible, without.value) == (False, "")


def test_the_closed_form_is_offered_last(client: Client) -> None:
    assert "nothing trained" in CLOSED_FORM
    assert "5 network evaluations" in draw(client, model=CLOSED_FORM, budget="5", images=1)[0]
