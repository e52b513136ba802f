"""What the page is asked for, in the words of sample.py: untrusted values in, flags or a UserError out."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from scoregen.cli.sample import build_parser
from scoregen.errors import UserError

# Of a sampler: numbers, words and lists of them. No `_target_`, interpolation or path, which could run code
# or read files for whoever can reach the page.
SETTING = re.compile(r"[a-z]\w*(\.[a-z]\w*)*=[\w.+-]+|[a-z]\w*(\.[a-z]\w*)*=\[[\w.,+-]*\]", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Args:
        images: at most so many at once.
        evaluations: of the network an image.
        waiting: requests in the queue; further ones are turned away.
    """

    images: int = 64
    evaluations: int = 512
    waiting: int = 16


@dataclass(frozen=True)
class Request:
    """The page's controls; None is what sample.py does without the flag."""

    model: str
    sampler: str | None = None
    steps: int | None = None
    nfe: int | None = None
    seed: int = 0
    images: int = 16
    label: int | None = None
    guidance: float = 1.0
    above: float | None = None  # guide at noise levels above this,
    up_to: float | None = None  # and up to this
    smoothing: float | None = None  # of a closed form
    settings: str = ""

    def flags(self, model: Sequence[str], limits: Limits) -> list[str]:
        """The arguments of sample.py that draw this, of the model that these flags name."""
        flags = {
            "--sampler": self.sampler,
            "--steps": self.steps,
            "--nfe": self.nfe,
            "--seeds": self._seeds(limits),
            "--class": self.label,
            "--guidance": None if self.guidance == 1 else self.guidance,
            "--guidance-interval": self._interval(),
            "--sigma-s": self.smoothing if "--data" in model else None,
        }
        given = [text for flag, value in flags.items() if value is not None for text in _words(flag, value)]
        return [*model, *given, *self._settings()]

    def _seeds(self, limits: Limits) -> str:
        if not 1 <= self.images <= limits.images:
            raise UserError(f"{self.images} images: from 1 to {limits.images} at once")
        if not 0 <= self.seed <= 2**63 - limits.images:
            raise UserError(f"seed {self.seed}: a whole number from 0 on, below 2^63")
        last = self.seed + self.images - 1
        return str(self.seed) if last == self.seed else f"{self.seed}-{last}"

    def _interval(self) -> str | None:
        if self.above is None and self.up_to is None:
            return None
        return f"{self.above or 0:g},{float('inf') if self.up_to is None else self.up_to:g}"

    def _settings(self) -> list[str]:
        settings = self.settings.split()
        for setting in settings:
            if not SETTING.fullmatch(setting) or "_target_" in setting or setting.startswith("steps="):
                raise UserError(
                    f"setting {setting}: write key=value with a number, a word or a [list], for example "
                    "s_churn=40 or grid.rho=5; the number of steps has a field of its own"
                )
        return settings


def whole(name: str, value: str | float | None) -> int | None:
    """The whole number in a field of the page, None for an empty one; UserError for anything else."""
    number = level(name, value)
    if number is not None and not number.is_integer():
        raise UserError(f"{name} {value}: a whole number is expected")
    return None if number is None else int(value if isinstance(value, int) else number)


def level(name: str, value: str | float | None) -> float | None:
    """The number in a field of the page, None for an empty one; UserError for anything else."""
    if value is None or not (text := str(value).strip()):
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name} {text[:50]}: a number is expected") from None


def _words(flag: str, value: object) -> list[str]:
    """The flag with its value; with `=` where a sign before it would pass for a flag."""
    text = f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


class _Parser(argparse.ArgumentParser):
    """Raise UserError where the command line would end the program."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(flags: Sequence[str]) -> argparse.Namespace:
    """What sample.py reads in these flags; UserError for what it would refuse."""
    return build_parser(_Parser).parse_intermixed_args(flags)
