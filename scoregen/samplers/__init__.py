"""Samplers: what `conf/sampler` may name."""

from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler

SAMPLERS: dict[str, type[Sampler]] = {"euler": EulerSampler, "heun": HeunSampler}
