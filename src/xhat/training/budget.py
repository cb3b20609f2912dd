"""How long a run lasts, and how it is asked to stop early."""

import signal
from types import FrameType

from xhat.config import Config
from xhat.training.checkpoint import RunError


class Budget:
    """The first of the config's limits that is reached.

    Raises:
        RunError: no limit is set.
    """

    def __init__(self, config: Config) -> None:
        by_images = None if config.max_images is None else -(-config.max_images // config.batch_size)
        self.steps = min((n for n in (config.max_steps, by_images) if n is not None), default=None)
        self.seconds = None if config.max_minutes is None else 60 * config.max_minutes
        if self.steps is None and self.seconds is None:
            raise RunError("say how long to train: --max_steps N, --max_images N or --max_minutes M")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent after `step` steps and `seconds`; 1 at the end."""
        by_steps = 0.0 if self.steps is None else step / max(1, self.steps)
        by_time = 0.0 if self.seconds is None else seconds / max(1e-9, self.seconds)
        return min(1.0, max(by_steps, by_time))


class Stop:
    """Ctrl-C and SIGTERM set `asked`, and the loop ends after the step under way; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
