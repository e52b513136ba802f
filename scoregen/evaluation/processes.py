"""What metrics need of the other processes: sums."""

from typing import Protocol

from torch import Tensor


class Processes(Protocol):
    """This process among the others, as `scoregen.parallel.Parallel` has it."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on every one of them; it may be taken in place."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        ...


class Alone:
    """One process."""

    rank = 0
    world = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag
