"""The embedded default: 1,797 real handwritten digits of 8 x 8 pixels."""

from importlib.resources import files

import numpy as np
import torch

from scoregen.data.base import ArrayDataset, Split, split_off
from scoregen.ranges import Fraction


def load_digits(
    *, split: Split = "train", conditional: bool = True, test_fraction: Fraction = 0.1
) -> ArrayDataset:
    """Read the embedded digits: uint8 [N, 1, 8, 8], classes 0 to 9.

    Grey level v, 0 to 16, becomes round(255 v / 16).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49 (its test set, as in scikit-learn's load_digits), CC BY 4.0.
    """
    with files("scoregen.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        levels, labels = arrays["images"], arrays["labels"]
    x = torch.from_numpy(np.rint(levels * (255 / 16)).astype(np.uint8)[:, None])
    label = torch.from_numpy(labels.astype(np.int64)) if conditional else None
    whole = ArrayDataset("digits", x, label, class_names=[str(i) for i in range(10)])
    return whole.select(split_off("digits", len(whole), split, test_fraction))
