"""Noise schedules: z_t = alpha(t) x0 + sigma(t) noise, t = 0 is data and t = 1 is noise."""

from xhat.diffusion.schedules import base, continuous, discrete, learned
from xhat.diffusion.schedules.base import *
from xhat.diffusion.schedules.continuous import *
from xhat.diffusion.schedules.discrete import *
from xhat.diffusion.schedules.learned import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += continuous.__all__
__all__ += discrete.__all__
__all__ += learned.__all__
