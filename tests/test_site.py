"""The documentation site is whole: each method has its page, each link a target, and nothing is fetched."""

import html
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import scoregen.objectives.lcss
from benchmarks import ledger
from scoregen import config
from scoregen.detection.attacks import ATTACKS, Attack
from scoregen.detection.msma import DETECTORS
from scoregen.distillers import DISTILLERS
from scoregen.evaluation.metrics import METRICS
from scoregen.networks import NETWORKS
from scoregen.objectives import OBJECTIVES
from scoregen.samplers import SAMPLERS
from scoregen.samplers.table import OF_DATA
from website import choices, experiments
from website.docstrings import arguments, is_formula, to_markdown
from website.links import DeadLinkError, rewrite
from website.markdown import adapt
from website.methods import GROUPS
from website.site import build

ROOT = Path(__file__).parents[1]
SITE = build()
REGISTRIES: dict[str, dict[str, Any]] = {
    "sampler": SAMPLERS | OF_DATA,
    "objective": OBJECTIVES,
    "distiller": DISTILLERS,
    "network": NETWORKS,
    "metric": {name: metric.compare for name, metric in METRICS.items()},
    "detector": DETECTORS,
    "attack": dict.fromkeys(ATTACKS, Attack),
}
METHODS = [(group, name, built) for group, known in REGISTRIES.items() for name, built in known.items()]
CHOICES = [
    (group, name) for group, names in config.groups().items() for name in names if group != "experiment"
]


def words(text: str) -> list[str]:
    """The words and signs of a text without the marks of Markdown."""
    text = re.sub(r"\[(arXiv [^]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub(r"^```.*$|^- |\*\*", "", text, flags=re.MULTILINE)
    return html.unescape(text.replace("`", "")).split()


@pytest.mark.parametrize(("group", "name", "built"), METHODS)
def test_every_registered_method_has_a_page_with_its_docstring(group: str, name: str, built: Any) -> None:
    page = SITE.pages[f"methods/{group}/{name}.md"]
    assert to_markdown(inspect.getdoc(built) or "") in page
    assert group == "detector" or re.search(rf"^python .*\b{name}\b", page, re.MULTILINE)


def test_a_page_holds_the_formula_that_its_docstring_refers_to() -> None:
    formula = to_markdown(inspect.getdoc(scoregen.objectives.lcss.lcss) or "")
    assert "### `lcss`\n\n" + formula in SITE.pages["methods/objective/lcss.md"]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_the_options_of_a_choice_are_those_of_its_file(group: str, name: str) -> None:
    def flat(node: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(node, dict) or not node:
            return {path: node} if path else {}
        kept = [(key, value) for key, value in node.items() if key not in ("_target_", "defaults")]
        items = [flat(value, f"{path}.{key}".lstrip(".")) for key, value in kept]
        return {key: value for item in items for key, value in item.items()}

    stored = OmegaConf.load(ROOT / f"conf/{group}/{name}.yaml")
    shown = {
        path: OmegaConf.create(f"value: {value}") for path, value, *_ in choices.read(group, name).options
    }
    found = {path: OmegaConf.to_container(value)["value"] for path, value in shown.items()}
    assert found == flat(OmegaConf.to_container(stored))


@pytest.mark.parametrize(("group", "name", "built"), METHODS)
def test_a_docstring_loses_no_word(group: str, name: str, built: Any) -> None:
    doc = inspect.getdoc(built) or ""
    assert sorted(words(to_markdown(doc))) == sorted(
        words(re.sub(r"^(Args|Raises|Returns):$", r"\1", doc, flags=re.M))
    )


def test_arguments_are_read_off_a_docstring() -> None:
    doc = "Do.\n\nArgs:\n    a: one\n        more. b, c: two.\n    d: three or so: four.\n\nRaises UserError."
    assert arguments(doc) == {"a": "one more", "b": "two", "c": "two", "d": "three or so: four"}
    shown = to_markdown(doc).split("\n")
    assert [line for line in shown if line.startswith("- ")] == [
        "- `a`: one more.",
        "- `b`, `c`: two.",
        "- `d`: three or so: four.",
    ]


def test_a_sentence_that_holds_an_equation_is_no_formula() -> None:
    assert is_formula("x' = x + eta z")
    assert not is_formula("Whether eta = 0.")


@pytest.mark.parametrize("name", ledger.load_all())
def test_a_record_is_on_the_pages_of_what_its_command_chose(name: str) -> None:
    chosen = experiments.choices_of(ledger.load_all()[name].training.command)
    for group in ("objective", "distiller", "network"):
        if chosen.get(group) not in (None, "null"):
            assert f"results.md#{name}" in SITE.pages[f"methods/{group}/{chosen[group]}.md"]


def test_every_experiment_is_listed_with_its_command() -> None:
    for name in config.groups()["experiment"]:
        assert f"## {name}\n" in SITE.pages["experiments.md"]
        assert f"python train.py experiment={name}" in SITE.pages["experiments.md"]


def test_every_page_of_docs_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in index]
    assert missing == ["README.md"]


def test_a_dead_link_is_refused_and_a_file_without_page_comes_along() -> None:
    assets: dict[str, bytes] = {}
    with pytest.raises(DeadLinkError, match=r"docs/a\.md links to docs/nowhere\.md"):
        rewrite("[x](nowhere.md)", "docs/a.md", "a.md", assets)
    text = "[a](../LICENSE) [b](../README.md#start) `[c](nowhere.md)`"
    expected = "[a](../files/LICENSE.txt) [b](../index.md#start) `[c](nowhere.md)`"
    assert rewrite(text, "docs/a.md", "methods/a.md", assets) == expected
    assert assets == {"files/LICENSE.txt": (ROOT / "LICENSE").read_bytes()}


def test_formulas_become_mathml_and_code_stays() -> None:
    text = adapt("Let $\\sigma^2$ be:\n- `$x$`\n\n```\na:\n- $y$\n```")
    assert text.startswith('Let <math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert text.endswith("be:\n\n- `$x$`\n\n```\na:\n- $y$\n```")


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {path.replace(".md", ".html") for path in SITE.pages} <= pages.keys()
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\bsrc=\"(?:https?:)?//|<link[^>]*href=\"(?:https?:)?//"
    )
    assert [path for path, text in pages.items() if loaded.search(text)] == []
    assert [path for path, text in pages.items() if "<h1" not in text] in ([], ["404.html"])
    assert "GaussianDenoiser" in pages["api/denoisers.html"]
    assert "search/search_index.js" in {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.js")}


def test_groups_with_pages_are_groups_of_the_configuration() -> None:
    assert set(GROUPS) <= config.groups().keys()
