"""The HTML of the page: whatever comes from outside is escaped, pictures stand in the text itself."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from scoregen.demo.film import Frame
from scoregen.demo.studio import Answer, Card

SLIDE = (
    "this.closest('.film').querySelectorAll('.frame').forEach((frame, i) => (frame.hidden = i != this.value))"
)


def refused(error: Exception) -> str:
    """What is wrong with the input, in one message."""
    return f'<p class="refused" role="alert">{escape(str(error))}</p>'


def told(answer: Answer) -> str:
    """What was drawn, from what, at what cost, and what to mind."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in answer.notes)
    return f'<p class="told" role="status">{escape(answer.told)}</p>{notes}'


def card(card: Card) -> str:
    """What a model is."""
    return f'<p class="told">{escape(card.told)}; its own sampler: {escape(card.sampler)}</p>'


def pictures(answer: Answer) -> str:
    """The images, and beside or below them how the first ones came about."""
    grid = _image(answer.grid.read_bytes(), "the images drawn")
    return f'<div class="pictures"><figure class="grid">{grid}</figure>{_film(answer.frames)}</div>'


def _film(frames: Sequence[Frame]) -> str:
    """The trajectory under a slider, at its end at first; the browser moves it without asking the server."""
    last = len(frames) - 1
    shown = "".join(_frame(frame, hidden=i != last) for i, frame in enumerate(frames))
    return (
        f'<div class="film">{shown}<input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="moment of the trajectory" oninput="{escape(SLIDE)}">'
        "<p>From noise to the first images: above the state, below what the denoiser makes of it.</p></div>"
    )


def _frame(frame: Frame, *, hidden: bool) -> str:
    caption = escape(frame.caption)
    return (
        f'<figure class="frame"{" hidden" * hidden}><figcaption>{caption}</figcaption>'
        f"{_image(frame.png, caption)}</figure>"
    )


def _image(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{b64encode(png).decode()}" alt="{alt}">'
