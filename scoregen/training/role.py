"""A part of a method that learns: its parameters, their optimizer, and what is counted of its steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoregen.denoisers.network import NetworkDenoiser
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.parallel import Parallel
from scoregen.sharding import blocks, local, local_parameter, parted
from scoregen.training.meters import Meters
from scoregen.training.phases import MicroBatch


class _Forward(nn.Module):
    """What DDP wraps: it averages the gradients of `module`, whatever the loss calls besides."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss: Callable[[MicroBatch], Loss], batch: MicroBatch) -> Loss:
        return loss(batch)


class Role:
    """Steps the parameters of `module`, which it freezes and thaws.

    Args:
        name: in the log and in messages.
        module: what learns; parameters that need no gradient stay as they are.
        make_optimizer: of these parameters, or of this process's parts of them.
        parallel: the processes that average their gradients.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        make_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        parallel: Parallel,
    ) -> None:
        self.name, self.module, self.parallel = name, module, parallel
        self.meters = Meters(parallel)
        self.wrapped = parallel.wrap(_Forward(module))
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.parts = [local_parameter(p) for p in self.parameters]
        self.optimizer = make_optimizer(self.parts)
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def lr(self) -> float:
        """The learning rate before the schedule."""
        return float(self._base_lrs[0])

    def activate(self, active: bool) -> None:
        """Thaw the parameters and be in training mode, or neither."""
        self.module.train(active)
        for p in self.parameters:
            p.requires_grad_(active)

    def backward(
        self, loss: Callable[[MicroBatch], Loss], batch: MicroBatch, scale: float, *, last: bool
    ) -> None:
        """Add the gradient of scale times the summed loss; the last micro-batch's averages over processes."""
        with self.parallel.accumulate(self.wrapped, last=last):
            losses = self.wrapped(loss, batch)
            (losses.value.sum() * scale).backward()
        self.meters.add_loss(losses)

    def apply(self, lr_factor: float, *, clip: float | None, loss_scale: float) -> Tensor:
        """Step unless a gradient is not finite, and drop the gradients; returns 1 (applied) or 0 (skipped).

        One fused reduction decides, and fused optimizers skip on the device, so that the host need not wait.
        """
        for p, part in zip(self.parameters, self.parts, strict=True):
            grad, p.grad = p.grad, None
            part.grad = None if grad is None else local(grad)
        grads = [part.grad for part in self.parts if part.grad is not None]
        norm = self.parallel.norm(grads) / loss_scale
        applied = torch.isfinite(norm).to(norm.dtype)
        factor = 1.0 / loss_scale
        if clip is not None:
            torch._foreach_mul_(grads, factor * (clip / norm).clamp(max=1.0))
        elif factor != 1.0:
            torch._foreach_mul_(grads, factor)
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * lr_factor
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = 1 - applied  # type: ignore[attr-defined]  # the protocol of GradScaler
            self.optimizer.step()
        elif applied.item():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meters.add_step(norm, applied)
        return applied

    def check_finite(self, max_skipped: int, nimg: int) -> None:
        """Give up where too many steps in a row were skipped; a host sync."""
        skipped = self.meters.skipped_in_a_row
        if skipped < max_skipped:
            return
        bad = ", ".join(self.meters.bad_levels())
        where = f"the loss is not finite at sigma {bad}" if bad else "the loss is finite, its gradient is not"
        raise UserError(
            f"{skipped} steps in a row of the {self.name} had gradients that are not finite and were "
            f"skipped, up to image {nimg:,}; {where}. The weights are those before them, the checkpoints "
            "whole. Check the data for NaN, lower optimizer.lr, or use precision=fp32."
        )

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` of the optimizer returned, of whole parameters."""
        mine = {
            i: {
                key: local(parted(value, self.parameters[i])) if value.ndim else value
                for key, value in of.items()
            }
            for i, of in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": mine})

    def recompute(self) -> None:
        """From now on recompute the activations of the networks' blocks in backward; they are not kept."""
        for network in self._networks():
            for block in blocks(network):
                block.forward = partial(_recomputed, block.forward)

    def compile(self, mode: str | None = None) -> None:
        """Compile the networks in place, in a mode of torch.compile."""
        for network in self._networks():
            network.compile(mode=mode)

    def _networks(self) -> list[nn.Module]:
        return [module.network for module in self.module.modules() if isinstance(module, NetworkDenoiser)]


def _recomputed(forward: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)
