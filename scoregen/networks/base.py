"""What every network shares: the arguments that the framework fills in, and the checks of its inputs."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from scoregen.errors import UserError

Role = Literal["denoiser", "classifier", "discriminator"]


class Network(nn.Module):
    """Stand for a raw network F(x, noise_labels, cond, augment_labels) on samples of `shape`.

    num_classes = 0 is unconditional; the null class num_classes and cond = None both mean a zero one-hot.
    Augment labels enter linearly and without a bias, so that None equals zeros.
    """

    role: ClassVar[Role] = "denoiser"  # what it is trained to be, by the objectives that train such ones

    def __init__(
        self, shape: tuple[int, ...], *, num_classes: int, augment_dim: int, out_channels: int | None
    ) -> None:
        super().__init__()
        self.shape, self.num_classes, self.augment_dim = shape, num_classes, augment_dim
        self.out_channels = shape[0] if out_channels is None else out_channels

    @property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """Where `features` can be read, and the shapes there of one sample's; none unless overridden."""
        return {}

    def features(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The features at all taps, [B, *shape], from what `forward` takes; for networks that have taps."""
        raise NotImplementedError(f"{type(self).__name__} has no taps")

    def check(self, x: Tensor, noise_labels: Tensor, cond: Tensor | None, augment: Tensor | None) -> None:
        """Raise UserError unless x is [B, *shape], noise_labels and cond [B], augment [B, augment_dim]."""
        batch = x.shape[:1]
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise UserError(
                f"this network takes batches of samples of shape {self.shape}, got shape {tuple(x.shape)};"
                " build it for the shape of the data set"
            )
        if noise_labels.shape != batch:
            raise UserError(
                f"noise_labels must be one a sample, {tuple(batch)}, got {tuple(noise_labels.shape)}"
            )
        if augment is not None and augment.shape != (*batch, self.augment_dim):
            raise UserError(
                f"augment_labels must have shape {(*batch, self.augment_dim)}, got {tuple(augment.shape)};"
                " build the network with augment_dim = the label_dim of the augmentation"
            )
        if cond is not None:
            self._check_cond(cond, batch)

    def _check_cond(self, cond: Tensor, batch: torch.Size) -> None:
        if self.num_classes == 0:
            raise UserError(
                "class ids were given to a network without classes; pass None or build it with num_classes"
            )
        if cond.shape != batch or cond.is_floating_point():
            raise UserError(
                f"class ids must be integers of shape {tuple(batch)}, got {cond.dtype} {tuple(cond.shape)}"
            )

    def one_hot(self, cond: Tensor | None, like: Tensor) -> Tensor:
        """[B, num_classes] in the dtype of `like` [B, ...]; zeros for the null class and for None."""
        if cond is None:
            return like.new_zeros(like.shape[0], self.num_classes)
        return (cond[:, None] == torch.arange(self.num_classes, device=cond.device)).to(like.dtype)
