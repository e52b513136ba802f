"""Put what a script measures into a page of the docs."""

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the page's markers of that name; a new name gets markers at its end."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text()
    if begin not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    head, rest = old.split(begin)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")
