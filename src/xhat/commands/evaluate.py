"""The arguments of xhat evaluate."""

import math
from collections.abc import Sequence
from typing import Any

from xhat.commands.parsing import COMPILE, add_use, new_parser
from xhat.commands.terminal import note_once
from xhat.errors import UsageError
from xhat.evaluation.counts import THOROUGH
from xhat.runs.places import weights_of

DESCRIPTION = """Measure a trained run: FID and KID of samples against real images, digits read with confidence,
penalties of the samples, and the denoising error of x0 at each noise level, on held-out images where there are some.

FID and KID are computed in the features of a small MNIST network for 28x28 grey images; name any other network with --features:
one that a file of --use has registered, after @xhat.register.features. With --json, stdout holds one JSON object and nothing
else.

--frontier draws by every sampler in ever more steps, up to --steps, from the same noise, and says with how few network calls
each comes within 5 % of the lowest FID.

--bound measures the variational bound instead, and --ode the likelihood of the probability-flow ODE, in bits/dim on random
held-out images. An interrupted --bound continues where it stopped when it is called again.
Under torchrun all processes take their parts, and the first prints."""
NUMBER = f"number of samples, or of images ({THOROUGH.samples}; with --standard_error all, with --ode {THOROUGH.ode_images})"


def read(argv: Sequence[str]) -> Any:
    """What to measure of which run.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("evaluate", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    reference = "images to compare with (default: MNIST's test set; for other runs their own training data)"
    parser.add_argument("--data", type=str | None, default=None, help=reference)
    parser.add_argument("--n", type=int | None, default=None, help=NUMBER)
    parser.add_argument("--bound", action="store_true", help="the variational bound, bits/dim")
    parser.add_argument("--ode", action="store_true", help="the likelihood of the probability-flow ODE, bits/dim")
    error = "as many images for the --bound as this standard error takes, at most all or --n"
    parser.add_argument("--standard_error", type=float | None, default=None, metavar="BITS", help=error)
    parser.add_argument("--exact", action="store_true", help="sum all steps of the --bound: slow")
    steps = "T of the --bound on a continuous schedule (1000); inf is continuous time"
    parser.add_argument("--bound_steps", type=str | None, default=None, metavar="T", help=steps)
    parser.add_argument("--frontier", action="store_true", help="FID by sampler and number of steps")
    most = "of the --frontier: the most that are tried (default: the run's own, at least 50)"
    parser.add_argument("--steps", type=int | None, default=None, help=most)
    given = "an .npz or a folder of images: use these instead of drawing"
    parser.add_argument("--samples", type=str | None, default=None, metavar="PATH", help=given)
    parser.add_argument("--features", type=str | None, default=None, metavar="NAME", help="registered network for FID and KID")
    parser.add_argument(
        "--images", type=int | None, default=None, help=f"held-out images for the denoising error ({THOROUGH.error_images})"
    )
    parser.add_argument("--compile", action="store_true", help=COMPILE)
    parser.add_argument("--seed", type=int, default=0, help="of the samples; with --bound and --ode of images and draws")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.read(argv)
    _refuse_what_has_no_effect(options)
    options.bound_steps = _steps(options.bound_steps)
    weights_of(options.run)
    return options


def _refuse_what_has_no_effect(options: Any) -> None:
    asked = [f"--{name}" for name in ("bound", "ode", "frontier") if getattr(options, name)]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} are {len(asked)} measurements: name one")
    named = next(iter(asked), None)
    for name in ("exact", "standard_error", "bound_steps"):
        if getattr(options, name) not in (None, False) and named != "--bound":
            raise UsageError(f"--{name} belongs to --bound: " + (f"leave it out with {named}" if named else "add that"))
    for name in ("samples", "features", "images"):
        if getattr(options, name) is not None and named and (name, named) != ("features", "--frontier"):
            raise UsageError(f"--{name} is for the measurement of samples, not for {named}: leave it out")
    if options.steps is not None and named != "--frontier":
        raise UsageError("--steps belongs to --frontier: " + (f"leave it out with {named}" if named else "add that"))
    if options.steps is not None and options.steps < 1:
        raise UsageError("--steps must be at least 1")
    if options.compile and (named or options.samples is not None):
        raise UsageError(f"--compile is for drawing samples: leave it out with {named or '--samples'}")
    if options.samples is not None:
        for name in ("n", "seed"):
            if getattr(options, name):
                note_once(f"--{name} {getattr(options, name)} has no effect: --samples are there already")
    if options.exact and options.standard_error is not None:
        raise UsageError("--exact takes every step of --n images, --standard_error chooses how many: name one")
    if any(count is not None and count < 2 for count in (options.n, options.images)):
        raise UsageError("--n and --images must be at least 2")
    if options.standard_error is not None and not 0 < options.standard_error < math.inf:
        raise UsageError(f"--standard_error must be in bits/dim, such as 0.005, got {options.standard_error}")


def _steps(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f'--bound_steps must be a number of steps, or inf for continuous time, got "{text}"') from None
