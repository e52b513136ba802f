"""Samplers: what `conf/sampler` may name."""

from scoregen.samplers.adams import DEISSampler, LMSSampler
from scoregen.samplers.ancestral import DDIMSampler, EulerAncestralSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.boosted import BoostedHeunSampler
from scoregen.samplers.consistency import ConsistencySampler
from scoregen.samplers.dpm_v3 import DPMv3Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.exponential import ExponentialSampler
from scoregen.samplers.langevin import LangevinSampler
from scoregen.samplers.multiplicative import MultiplicativeSampler, UnconstrainedMultiplicativeSampler
from scoregen.samplers.multistep import DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSampler
from scoregen.samplers.one_step import OneStepSampler
from scoregen.samplers.predictor_corrector import PredictorCorrectorSampler
from scoregen.samplers.restart import RestartSampler
from scoregen.samplers.scheduler_adapter import SchedulerSampler
from scoregen.samplers.singlestep import DPM2Sampler, DPMpp2SSampler
from scoregen.samplers.unipc import UniPCSampler
from scoregen.samplers.wavegrad import WaveGradSampler

SAMPLERS: dict[str, type[Sampler]] = {
    "euler": EulerSampler,
    "heun": HeunSampler,
    "heun_boosted": BoostedHeunSampler,
    "dpm_2": DPM2Sampler,
    "dpmpp_2s": DPMpp2SSampler,
    "dpmpp_2m": DPMpp2MSampler,
    "dpmpp_3m": DPMpp3MSampler,
    "dpmpp_2m_sde": DPMpp2MSDESampler,
    "unipc": UniPCSampler,
    "dpm_v3": DPMv3Sampler,
    "lms": LMSSampler,
    "deis": DEISSampler,
    "ddim": DDIMSampler,
    "euler_ancestral": EulerAncestralSampler,
    "wavegrad": WaveGradSampler,
    "restart": RestartSampler,
    "predictor_corrector": PredictorCorrectorSampler,
    "exponential": ExponentialSampler,
    "langevin": LangevinSampler,
    "multiplicative": MultiplicativeSampler,
    "multiplicative_unconstrained": UnconstrainedMultiplicativeSampler,
    "one_step": OneStepSampler,
    "consistency": ConsistencySampler,
    "scheduler": SchedulerSampler,
}
