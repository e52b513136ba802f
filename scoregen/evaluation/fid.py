"""FID and its kin: the Frechet distance of two sets of features, told with its bias."""

from scoregen.evaluation.frechet import Gaussian, finite_sample_bias, frechet_distance
from scoregen.evaluation.result import Score


def frechet_score(drawn: Gaussian, real: Gaussian) -> Score:
    """The Frechet distance of generated features to real ones, and what n real images would score."""
    n = drawn.n
    assert n is not None, "generated images were counted"
    floor = finite_sample_bias(real, n)
    note = "" if n > drawn.dim else (
        f"n = {n} does not exceed the {drawn.dim} features: the covariance is singular and the bias large "
        f"(about {floor:.3g} for real images); compare equal n only"
    )  # fmt: skip
    return Score(frechet_distance(drawn, real), n, floor=floor, note=note)
