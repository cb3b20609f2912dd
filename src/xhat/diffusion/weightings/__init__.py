"""Loss weightings over noise levels. They decide what the objective is; time samplers only decide how it is sampled.

A weighting is called with (logsnr, schedule). It is written for the space that its paper writes its loss in, named by `space`;
`Denoising` multiplies it into the loss as it stands. `convert_weighting` takes it to another space by the one factor of the
linear map.
"""

from xhat.diffusion.weightings import composed, noise_levels, published
from xhat.diffusion.weightings.base import Weighting, name_of, require_weighting, space_of, written_for
from xhat.diffusion.weightings.composed import *
from xhat.diffusion.weightings.noise_levels import *
from xhat.diffusion.weightings.published import *

__all__ = ["Weighting", "name_of", "require_weighting", "space_of", "written_for"]
__all__ += composed.__all__
__all__ += noise_levels.__all__
__all__ += published.__all__
