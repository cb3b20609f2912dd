"""Penalties: callables from images (B, C, H, W) in [-1, 1] to one value per image (B,), differentiable."""

from xhat.losses.penalties import base, latent, learned, masks, paired, physics, pixels
from xhat.losses.penalties.base import *
from xhat.losses.penalties.latent import *
from xhat.losses.penalties.learned import *
from xhat.losses.penalties.masks import *
from xhat.losses.penalties.paired import *
from xhat.losses.penalties.physics import *
from xhat.losses.penalties.pixels import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += latent.__all__
__all__ += learned.__all__
__all__ += masks.__all__
__all__ += paired.__all__
__all__ += physics.__all__
__all__ += pixels.__all__
