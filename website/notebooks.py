"""The notebooks as pages, with the pictures and texts that they hold."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from website.links import ROOT, rewrite
from website.markdown import adapt

if TYPE_CHECKING:
    from website.site import Site


def add(site: "Site") -> list[dict[str, str]]:
    """Add a page for each notebook, its pictures and itself; their navigation."""
    entries = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, pictures = f"tutorials/{path.stem}.md", list[bytes]()
        source = f"notebooks/{path.name}"
        cells = json.loads(path.read_text())["cells"]
        shown = "\n\n".join(_cell(cell, source, page, pictures, site) for cell in cells)
        title, _, rest = shown.partition("\n")
        note = f"[Download the notebook](../files/{source}), or run it where the project is installed."
        site.pages[page] = f"{title}\n\n{note}\n{rest}"
        site.assets[f"files/{source}"] = path.read_bytes()
        site.assets.update({f"tutorials/{path.stem}_{i}.png": data for i, data in enumerate(pictures)})
        entries.append({title.removeprefix("# "): page})
    return entries


def _cell(cell: dict[str, Any], source: str, page: str, pictures: list[bytes], site: "Site") -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return adapt(rewrite(text, source, page, site.assets))
    outputs = [_output(output, Path(page).stem, pictures) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{text}\n```", *filter(None, outputs)])


def _output(output: dict[str, Any], stem: str, pictures: list[bytes]) -> str:
    """A picture, which joins `pictures`, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        pictures.append(base64.b64decode("".join(data["image/png"])))
        return f"![Output of the code above]({stem}_{len(pictures) - 1}.png)"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
