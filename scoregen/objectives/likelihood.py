"""Denoising likelihood score matching (DLSM): a classifier whose gradient is the score of the likelihood."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from scoregen.data.augment import Augment
from scoregen.denoisers.base import Cond, Denoise, Denoiser, expand
from scoregen.denoisers.frozen import Frozen
from scoregen.diffusion.noise import SigmaDistribution
from scoregen.errors import UserError
from scoregen.model import load_model
from scoregen.networks.base import Role
from scoregen.networks.layers import twice_differentiable
from scoregen.objectives.base import Loss
from scoregen.ranges import NonNegative
from scoregen.rng import BatchRng

if TYPE_CHECKING:
    from scoregen.denoisers.network import NetworkDenoiser


class LikelihoodScoreLoss(nn.Module):
    """Match grad_x log q(y | x; sigma) of a classifier to what Bayes' rule lacks, beside cross-entropy.

    sigma^(2 w_d) / 2 mean (grad_x log q + s(x; sigma) + n / sigma)^2 - c sigma^(-2 w_c) log q,
    x = x0 + sigma n,  s = (D - x) / sigma^2 the frozen score of the data without classes.

    Since s + n / sigma = (D - x0) / sigma^2, the first term is denoising score matching of the guided
    denoiser D + sigma^2 grad log q of `ClassifierGuidance` at w = 1, of which only the push is trained; so it
    is computed, without the cancelling x. Its minimiser is Bayes' classifier where D is exact; where D errs,
    the push corrects what a gradient of log q can. Logged are `score_matching` (the first term),
    `cross_entropy` and `accuracy`.

    The mean over elements is the published reduction, and w_d = w_c = 0, c = 1 the published weights; w_d = 1
    is this project's choice (inferred, not read in the paper): with w_d = 0 the term grows like 1 / sigma^2.

    Args:
        prior: D, an unconditional denoiser; it is evaluated only.
        sigma: the distribution of the noise level; draws are stratified over the global batch.
        score_power: w_d. cross_entropy_power: w_c. cross_entropy: c; 0 matches scores alone.

    Source: Chao et al., Denoising Likelihood Score Matching for Conditional Score-based Data Generation,
    2022, arXiv 2203.14206 (of which the abstract and the official code were read).
    """

    trains: ClassVar[Role] = "classifier"

    def __init__(
        self,
        prior: Denoiser,
        sigma: SigmaDistribution,
        *,
        score_power: NonNegative = 1.0,
        cross_entropy_power: NonNegative = 0.0,
        cross_entropy: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.prior, self.sigma, self.cross_entropy = Frozen(prior), sigma, cross_entropy
        self.score_power, self.cross_entropy_power = score_power, cross_entropy_power

    def forward(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss of a classifier, in the denoiser's place, at x0 [B, *shape] of the classes cond [B]."""
        if cond is None:
            raise UserError("objective=dlsm needs data with classes; set data.conditional=true")
        sigma = self.sigma.quantile(rng.stratified()).to(x0)
        x = (x0 + expand(sigma, x0) * rng.randn_like(x0)).requires_grad_()
        with twice_differentiable():
            log_q = denoiser(x, sigma).log_softmax(1)
        log_likelihood = log_q.gather(1, cond[:, None])[:, 0]
        (slope,) = torch.autograd.grad(log_likelihood.sum(), x, create_graph=True)
        missing = (self.prior(x.detach(), sigma) - x0) / expand(sigma, x0).square()
        error = (slope + missing).square().flatten(1).mean(1) / 2
        score_matching = sigma ** (2 * self.score_power) * error
        weight = self.cross_entropy * sigma ** (-2 * self.cross_entropy_power)
        logs = {
            "score_matching": score_matching,
            "cross_entropy": -log_likelihood,
            "accuracy": (log_q.argmax(1) == cond).to(torch.float32),
        }
        return Loss(score_matching - weight * log_likelihood, sigma, logs)

    def check(self, classifier: "NetworkDenoiser", augment: Augment) -> None:
        """Raise UserError unless classifier and prior are of the same samples, scale and noise levels."""
        prior = self.prior.denoiser
        if prior.num_classes:
            raise UserError(
                "objective.prior is told the class, which a classifier then could not add; train one with "
                "data.conditional=false"
            )
        if prior.shape != classifier.shape:
            raise UserError(
                f"objective.prior is of samples of shape {prior.shape}, the data are of shape "
                f"{classifier.shape}; both must be of the same data"
            )
        theirs, ours = getattr(prior, "precond", classifier.precond), classifier.precond
        if theirs != ours:
            raise UserError(
                f"objective.prior counts noise as {theirs}, the classifier as {ours}: they must agree, since "
                "a score of other noise levels or of another scale of the data is not the one that the "
                "classifier completes. Choose precond= and sigma_data= as in the run of the prior"
            )
        low, high = self.sigma.quantile(torch.tensor([1e-7, 1 - 1e-7], dtype=torch.float64)).tolist()
        if low < prior.sigma_min * (1 - 1e-6) or high > prior.sigma_max * (1 + 1e-6):
            raise UserError(
                f"objective.sigma reaches from {low:.3g} to {high:.3g}, objective.prior is good for "
                f"{prior.sigma_min:.3g} to {prior.sigma_max:.3g}: narrow objective.sigma to that"
            )
        if classifier.precision != "fp32":
            raise UserError(
                f"precision={classifier.precision}: objective=dlsm differentiates the classifier twice, "
                "which half precision does not stand; set precision=fp32"
            )
        if augment.label_dim:
            raise UserError("objective=dlsm needs augment=none: its prior is of images as they are")


def load_prior(path: str) -> Denoiser:
    """The averaged model of a run folder or a weights file."""
    prior = load_model(path)
    if prior.network.role != "denoiser":
        raise UserError(f"objective.prior={path} is a {prior.network.role}: give a model of the data")
    return prior
