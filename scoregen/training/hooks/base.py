"""What happens at intervals of a run. Intervals count images."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from scoregen.ranges import PositiveInt

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class Hook(ABC):
    """Something done every `every` images, and once more at the end of the run; null never does it.

    A hook that remembers must return it from `state`, so that a resumed run goes on as if never stopped. What
    it does at the end comes after the last checkpoint, and so leaves no trace in a run that is continued.
    """

    at_end: ClassVar[bool] = True

    def __init__(self, every: PositiveInt | None = None) -> None:
        self.every = every

    def due(self, before: int, nimg: int) -> bool:
        """Whether an interval ends in (before, nimg]."""
        return self.every is not None and nimg // self.every > before // self.every

    @property
    def stop_reason(self) -> str | None:
        """Why the run should end now, where this hook finds that it should."""
        return None

    def start(self, trainer: "Trainer") -> None:  # noqa: B027 - most hooks need no start
        """Take note that the loop begins."""

    @abstractmethod
    def __call__(self, trainer: "Trainer") -> None:
        """Do it; called in every process."""

    def state(self) -> dict[str, Any]:
        """What must be saved, as plain JSON."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027 - most hooks have no state
        """Restore what `state` returned."""
