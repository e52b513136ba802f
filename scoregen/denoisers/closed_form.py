"""A data set as a denoiser: the choices of closed-form diffusion in one call."""

from typing import Literal

import torch

from scoregen.data.base import Dataset
from scoregen.data.codec import Codec, encode_dataset
from scoregen.data.stats import measure
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.latent import Chain, LatentDenoiser, Whitening
from scoregen.denoisers.moments import measure_gaussian
from scoregen.denoisers.neighbours import ImportanceDenoiser, NeighbourDenoiser
from scoregen.denoisers.smoothed import SmoothedDenoiser
from scoregen.errors import UserError
from scoregen.ranges import NonNegative, NonNegativeInt, Positive, PositiveInt

Estimator = Literal["exact", "neighbours", "importance"]


def closed_form_denoiser(
    data: Dataset,
    *,
    estimator: Estimator = "exact",
    sigma_s: NonNegative = 0.3,
    noises: PositiveInt = 4,
    resample: bool = False,
    neighbours: PositiveInt = 20,
    others: NonNegativeInt = 20,
    codec: Codec | None = None,
    components: NonNegativeInt = 0,
    memory: Positive = 256.0,
) -> Denoiser:
    """Make a denoiser of a data set, with no training.

    Args:
        data: the training set; conditional where it has labels.
        estimator: the exact posterior mean; from nearest neighbours and random others; or by importance
            sampling around the neighbours.
        sigma_s: smoothing, in standard deviations of the data; 0 returns training samples only.
        noises: M, over which the smoothing averages.
        resample: draw the smoothing's noise in every call, not once a trajectory.
        neighbours: K of the estimators.
        others: L, or the number of draws.
        codec: an encoder and decoder to work between.
        components: work in as many whitened principal components, of the samples or of their codes; 0 does
            not whiten.
        memory: working memory in MiB.

    Raises:
        UserError: more neighbours than samples in a class; an empty class; more components than vary.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395;
    defaults after secondary sources.
    """
    codes = data if codec is None else encode_dataset(data, codec)
    if components:
        gaussian = measure_gaussian(codes, rank=components)
        assert isinstance(gaussian, GaussianDenoiser)
        whitening = Whitening(gaussian)
        codes, codec = encode_dataset(codes, whitening), Chain(codec, whitening) if codec else whitening
    samples = codes.fetch(torch.arange(len(codes)))
    exact = EmpiricalDenoiser(samples.x, samples.label, memory=memory)
    denoiser: Denoiser = exact
    if estimator == "neighbours":
        denoiser = NeighbourDenoiser(exact, neighbours=neighbours, others=others)
    elif estimator == "importance":
        if not others:
            raise UserError("estimator=importance draws `others` samples: at least 1")
        denoiser = ImportanceDenoiser(exact, neighbours=neighbours, draws=others)
    if sigma_s:
        spread = sigma_s * measure(codes).std
        denoiser = SmoothedDenoiser(denoiser, sigma_s=spread, noises=noises, resample=resample)
    return denoiser if codec is None else LatentDenoiser(denoiser, codec)
