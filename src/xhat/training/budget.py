"""How long a run lasts."""

from typing import Self

from xhat.config.options import Options
from xhat.errors import RunError


class Budget:
    """The first of several limits that is reached.

    Args:
        batch_size: images per step.
        max_steps: stop after so many steps.
        max_images: stop after so many images.
        max_minutes: stop after so many minutes.

    Attributes:
        steps: the limit in steps, None without one.
        seconds: the limit in seconds, None without one.

    Raises:
        RunError: no limit is set.
    """

    def __init__(
        self,
        batch_size: int,
        max_steps: int | None = None,
        max_images: int | None = None,
        max_minutes: float | None = None,
    ) -> None:
        by_images = None if max_images is None else -(-max_images // batch_size)
        self.steps = min((n for n in (max_steps, by_images) if n is not None), default=None)
        self.seconds = None if max_minutes is None else 60 * max_minutes
        if self.steps is None and self.seconds is None:
            raise RunError("say how long to train: --max_steps N, --max_images N or --max_minutes M")

    @classmethod
    def of(cls, options: Options) -> Self:
        """That of options."""
        return cls(options.batch_size, options.max_steps, options.max_images, options.max_minutes)

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent after `step` steps and `seconds`; 1 at the end."""
        by_steps = 0.0 if self.steps is None else step / max(1, self.steps)
        by_time = 0.0 if self.seconds is None else seconds / max(1e-9, self.seconds)
        return min(1.0, max(by_steps, by_time))

    def end(self) -> str:
        """When it is spent, in words."""
        ends = [] if self.steps is None else [f"at step {self.steps}"]
        ends += [] if self.seconds is None else [f"after {self.seconds / 60:g} minutes"]
        return " or ".join(ends)
