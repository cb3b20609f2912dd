"""How much is measured of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Numbers of images, at most.

    Attributes:
        samples: drawn, for distances and penalties.
        error_images: real ones for the error by noise level.
        bound_images: real ones for the variational bound.
        pilot_images: others, for the bound's pilot.
        ode_images: real ones for the likelihood of the ODE.
        penalty_images: real ones whose penalties stand beside those of the samples; None is all.
    """

    samples: int = 1000
    error_images: int = 1000
    bound_images: int = 1000
    pilot_images: int = 512
    ode_images: int = 64
    penalty_images: int | None = None


THOROUGH = Counts()
"""Of the one run, and the one quantity, that xhat evaluate is asked for."""

QUICK = Counts(error_images=500, bound_images=300, pilot_images=256, penalty_images=2000)
"""Of each of the many runs of a report or a study, all quantities."""
