"""How long a run lasts, what that makes of its learning rate, and how it is asked to stop early."""

import signal
import threading
from types import FrameType

from xhat.config.config import Config
from xhat.errors import RunError
from xhat.training.optimizers import learning_rate_factor

JUMP = 1.1
"""How much another budget may change the learning rate without a word."""


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

    def end(self) -> str:
        """When it is spent, in words."""
        ends = [] if self.steps is None else [f"at step {self.steps}"]
        ends += [] if self.seconds is None else [f"after {self.seconds / 60:g} minutes"]
        return " or ".join(ends)


def rate_jump(before: Config, now: Config, step: int, seconds: float) -> str | None:
    """What to say of the learning rate when a run goes on with another budget; None if it goes on much as it would have.

    The cosine runs over the whole budget, so that the same step is earlier on a longer one.

    Args:
        before: the config with which the steps so far were trained.
        now: the config from here on.
        step: steps done.
        seconds: trained so far.
    """
    rates = [_rate(before, step, seconds), _rate(now, step, seconds)]
    if step == 0 or Budget(now).progress(step, seconds) == 1 or max(rates) <= JUMP * min(rates):
        return None
    last, rate = _rate(before, step - 1, seconds), rates[1]
    way = "back up" if rate > last else "down"
    return f"the learning rate goes from {last:.1e} {way} to {rate:.1e}, since the cosine now ends {Budget(now).end()}"


def _rate(config: Config, step: int, seconds: float) -> float:
    progress = Budget(config).progress(step, seconds)
    return config.optimizer.lr * learning_rate_factor(step, progress, config.optimizer.warmup_steps)


class Stop:
    """Ctrl-C and SIGTERM set `asked`, and the loop ends after the step under way; a second Ctrl-C ends it at once.

    In a thread that is not the main one, signals are the main thread's, and nobody asks.
    """

    def __init__(self) -> None:
        self.asked = False
        heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {s: signal.signal(s, self._ask) for s in heard}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
