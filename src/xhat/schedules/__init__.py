"""Noise schedules: z_t = alpha(t) x0 + sigma(t) noise, t = 0 is data and t = 1 is noise."""

from xhat.schedules.base import Schedule
from xhat.schedules.continuous import VE, Cosine, Flow, LinearLogSNR
from xhat.schedules.discrete import Discrete
from xhat.schedules.learned import Learned

__all__ = ["VE", "Cosine", "Discrete", "Flow", "Learned", "LinearLogSNR", "Schedule"]
