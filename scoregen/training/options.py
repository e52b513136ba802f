"""Hyper-parameters of the training loop."""

from dataclasses import dataclass
from typing import Literal

from scoregen.ranges import Fraction, Positive, PositiveInt


@dataclass(frozen=True)
class TrainerOptions:
    """Hyper-parameters of the loop; all progress is counted in images.

    Args:
        total: images to train on.
        batch: images per optimizer step, over all processes.
        microbatch: images per forward on one process; null takes the process's whole share. Dropout masks
            depend on it; nothing else does.
        label_dropout: probability of the null class in training.
        clip: largest gradient norm; null does not clip.
        loss_scale: factor on the loss before backward, taken out again after (fp16; EDM uses 100).
        max_skipped: skipped steps in a row after which the run gives up.
        keep: newest checkpoints to keep, beside the best by held-out loss.
        workers: threads that decode ahead, for data sets that are not held in memory.
        subset: use the first so many training images only; null uses all.
        compile: whether to compile the network in place; reduce-overhead also replays it as CUDA graphs,
            which helps where the host is slower than the GPU, at small batches.
        checkpointing: recompute the activations of blocks in the backward instead of keeping them: less
            memory, about a third more work, the same gradients.
    """

    total: PositiveInt
    batch: PositiveInt
    microbatch: PositiveInt | None = None
    label_dropout: Fraction = 0.0
    clip: Positive | None = None
    loss_scale: Positive = 1.0
    max_skipped: PositiveInt = 10
    keep: PositiveInt = 3
    workers: PositiveInt = 4
    subset: PositiveInt | None = None
    compile: bool | Literal["reduce-overhead"] = False
    checkpointing: bool = False
