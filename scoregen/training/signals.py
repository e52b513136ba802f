"""Stop requests end a run in order: Ctrl-C, SIGTERM (pre-emption), SIGUSR1 and 2 (a scheduler's warnings)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Within it the stop signals go to `handler`; only the main thread can set one, others set none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """While active, the first stop signal is noted in `received`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._noting = on_stop_signals(self._note)

    def __enter__(self) -> Self:
        self._noting.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._noting.__exit__(*exception)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
