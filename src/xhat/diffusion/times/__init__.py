"""Time samplers: timestep sampling distributions. All but `Uncorrected` change only how the objective is sampled.

Each returns t and its importance, uniform density / own density on the schedule's support, so that the mean of
importance · f(t) estimates the uniform mean of f whatever the sampler. The support is the grid i/T, i = 1..T, of a
discrete schedule, and [t_min, 1] in continuous time.
"""

from xhat.diffusion.times import base, fixed, information, learned, shifted, uncorrected
from xhat.diffusion.times.base import *
from xhat.diffusion.times.fixed import *
from xhat.diffusion.times.information import *
from xhat.diffusion.times.learned import *
from xhat.diffusion.times.shifted import *
from xhat.diffusion.times.uncorrected import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += fixed.__all__
__all__ += information.__all__
__all__ += learned.__all__
__all__ += shifted.__all__
__all__ += uncorrected.__all__
