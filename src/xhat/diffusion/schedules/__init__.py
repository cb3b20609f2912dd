"""Noise schedules: z_t = alpha(t) x0 + sigma(t) noise, t = 0 is data and t = 1 is noise."""

from xhat.diffusion.schedules.base import Schedule
from xhat.diffusion.schedules.continuous import VE, Cosine, Flow, LinearLogSNR
from xhat.diffusion.schedules.discrete import Discrete
from xhat.diffusion.schedules.learned import Learned

__all__ = ["VE", "Cosine", "Discrete", "Flow", "Learned", "LinearLogSNR", "Schedule"]
