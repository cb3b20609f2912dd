"""Whether torch.compile repays its time: it is measured on this machine once for a network, and remembered."""

import contextlib
import hashlib
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xhat.diffusion.calling import unwrapped
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import from_all, from_main
from xhat.errors import DamagedError, first_line
from xhat.files.cache import cache_folder
from xhat.files.values import read_values, write_values

FILE, MOST = "compiling.json", 100
CALLS = 3
"""Of which the fastest counts, after one to warm up."""
COMPILING = 40.0
GAIN, GAIN_OF_SLOW_FLOAT32 = 1.5, 1.1
"""Expected before anything was measured: seconds, and how many times as fast the network is then. On a CPU without bf16 most of
the time goes into convolutions, which stay as they are."""
LEAST_STEPS, LEAST_SECONDS = 100, 10.0
"""Of a budget that is worth a trial."""


@dataclass(frozen=True)
class Pace:
    """What was measured of a network, or is expected.

    Attributes:
        compiling: seconds that torch.compile takes.
        eager: seconds of a forward and a backward pass without it.
        compiled: the same with it.
    """

    compiling: float
    eager: float
    compiled: float

    def repays(self, steps: int | None, seconds: float | None) -> bool:
        """Whether a budget is long enough: T (1 - compiled/eager) > compiling, T being how long it lasts without."""
        ends = [*([steps * self.eager] if steps is not None else []), *([seconds] if seconds is not None else [])]
        return min(ends) * (1 - self.compiled / self.eager) > self.compiling


@dataclass(frozen=True)
class Trial:
    """A denoiser and a batch, to be tried before training.

    Attributes:
        denoiser: whose network it is.
        z: noisy samples (B, ...).
        t: times (B,).
        cond: what else the network is told.
        autocast: as in training.
    """

    denoiser: Denoiser
    z: Tensor
    t: Tensor
    cond: Condition | None
    autocast: torch.autocast

    @property
    def net(self) -> nn.Module:
        """What is compiled."""
        return self.denoiser.net

    @property
    def key(self) -> str:
        """Of what the pace is a function of: the network, the batch, the machine, torch."""
        sizes = [tuple(p.shape) for p in self.net.parameters()]
        told = {name: tuple(getattr(x, "shape", ())) for name, x in (self.cond or {}).items()}
        cuda = self.z.device.type == "cuda"
        machine = torch.cuda.get_device_name() if cuda else (_cpu(), torch.backends.cpu.get_cpu_capability())
        how = (self.autocast.fast_dtype if self.autocast._enabled else None, torch.get_num_threads(), torch.__version__)
        whole = repr((type(unwrapped(self.net)).__qualname__, sizes, tuple(self.z.shape), told, machine, how))
        return hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()

    def seconds(self) -> float:
        """Of a forward and a backward pass, as the network is called now."""
        return min(self._seconds() for _ in range(CALLS + 1))

    def eager_seconds(self) -> float:
        """The same without torch.compile, also where an earlier training of this process has compiled it."""
        compiled, self.net._compiled_call_impl = self.net._compiled_call_impl, None
        try:
            return self.seconds()
        finally:
            self.net._compiled_call_impl = compiled

    def pass_once(self) -> None:
        """A forward and a backward pass; what the network counts of its calls (batch norms do) is as it was before."""
        held = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        try:
            with self.autocast:
                out = self.denoiser(self.z, self.t, self.cond).raw
            if out.requires_grad:  # a network that is frozen beside what learns
                out.sum().backward()
        finally:
            self.denoiser.zero_grad()
            with torch.no_grad():
                for name, buffer in self.net.named_buffers():
                    if name in held and held[name].shape == buffer.shape:  # others are caches, of the last call's shape
                        buffer.copy_(held[name])

    def _seconds(self) -> float:
        start = time.perf_counter()
        self.pass_once()
        if self.z.device.type == "cuda":
            torch.cuda.synchronize(self.z.device)
        return time.perf_counter() - start


def remembered(trial: Trial) -> Pace | None:
    """The pace that was measured here before."""
    try:
        return _remembered().get(trial.key)
    except (OSError, DamagedError):
        return None


def expected(trial: Trial) -> Pace:
    """The pace that is to be expected of the eager one, which is measured."""
    slow = trial.z.device.type == "cpu" and not trial.autocast._enabled
    eager = trial.eager_seconds()
    return Pace(COMPILING, eager, eager / (GAIN_OF_SLOW_FLOAT32 if slow else GAIN))


def repays_compiling(trial: Trial, steps: int | None, seconds: float | None) -> bool:
    """Whether a budget repays torch.compile here; on a CPU a C++ compiler has to be there.

    Several processes ask together: the first one's memory and compiler count, and all of them try, or none.
    """
    if (steps is not None and steps < LEAST_STEPS) or (seconds is not None and seconds < LEAST_SECONDS):
        return False
    compiler = trial.z.device.type != "cpu" or any(map(shutil.which, ("g++", "clang++")))
    known, compiler = from_main((remembered(trial), compiler))
    if not compiler:
        return False
    try:
        pace = known or expected(trial)
        if known is None:
            _remember(trial.key, pace)  # so that the next training need not try, and decides alike
    except RuntimeError:  # there is not enough memory, for example: the training says so, with a way out
        pace = Pace(1.0, 1.0, 1.0)
    return all(from_all(pace.repays(steps, seconds)))


def compile_network(trial: Trial) -> str | None:
    """Compile in place and try it; on failure, of one process, the network stays as it was. How long it took is remembered.

    Returns:
        None, or the first line of what went wrong.
    """
    key, pace, failure = trial.key, None, None
    try:
        eager, start = trial.eager_seconds(), time.perf_counter()
        trial.net.compile(dynamic=False)
        trial.pass_once()
        pace = Pace(time.perf_counter() - start, eager, trial.seconds())
    except RuntimeError as error:  # dynamo's and inductor's errors, a compiler that is missing or broken among them
        failure = first_line(error)
    failure = next(filter(None, from_all(failure)), None)
    if failure is not None:
        trial.net._compiled_call_impl = None
    elif pace is not None:
        _remember(key, pace)
    return failure


def keep_buffers() -> None:
    """Let compiled networks be differentiated twice: by default their backward pass reuses the memory of what it has read."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _remembered() -> dict[str, Pace]:
    found: dict[str, Pace] = read_values(cache_folder() / FILE, dict[str, Pace])
    return found


def _remember(key: str, pace: Pace) -> None:
    """In the cache; where none can be written, the next training measures anew."""
    try:
        known = _remembered()
    except (OSError, DamagedError):
        known = {}
    latest = {**{k: v for k, v in known.items() if k != key}, key: pace}
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_values(cache_folder() / FILE, {k: asdict(v) for k, v in list(latest.items())[-MOST:]})
