"""Steering samples while they are drawn: by a penalty, a measurement, pixels that are known. Nothing is trained."""

from xhat.sampling.steering.base import Steering
from xhat.sampling.steering.dps import DPS, root
from xhat.sampling.steering.guided import guided_by
from xhat.sampling.steering.measurement import Linear
from xhat.sampling.steering.mmps import MMPS
from xhat.sampling.steering.mpgd import MPGD
from xhat.sampling.steering.operators import Blur, Hide, Shrink
from xhat.sampling.steering.pigdm import PiGDM
from xhat.sampling.steering.repaint import RePaint

__all__ = [
    "Blur",
    "DPS",
    "guided_by",
    "Hide",
    "Linear",
    "MMPS",
    "MPGD",
    "PiGDM",
    "RePaint",
    "root",
    "Shrink",
    "Steering",
]
