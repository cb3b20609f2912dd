"""The arguments of xhat sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.parsing import COMPILE, add_force, add_use, new_parser
from xhat.errors import UsageError
from xhat.files.ours import require_free
from xhat.runs.places import weights_of

DESCRIPTION = """Draw images from a trained run.

Writes an .npz with the array images, uint8, N x H x W x C, and a picture of the first 100 beside it; of data that are no 8-bit
images the array is called samples, float32, N x ..., in the units of the data, and --out FILE.npy writes it alone.
Class-conditional models
draw all classes in turn, or the one of --label; the .npz then also holds labels: the data's own numbers, or, where the classes
have names, positions in an array classes of these. A run of a pipeline draws what --prompt says, or the lines of --prompts in
turn; the .npz then also holds prompts. With --guide samples are pulled towards a small penalty, or towards what was measured of
them; those that are measured have no class unless --label names one. Image k depends on the seed and k alone. Sampler, steps
and guidance default to the run's own. Under torchrun all processes draw, each its part, and the first writes."""


def read(argv: Sequence[str]) -> Any:
    """What to draw, of which run, and where it goes.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("sample", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="where the samples go; .npy of fields")
    parser.add_argument("--n", type=int | None, default=None, help="number of images (default: 64, or one a prompt)")
    parser.add_argument("--prompt", type=str | None, default=None, help="draw what this says, with a run of a pipeline")
    parser.add_argument("--prompts", type=str | None, default=None, metavar="FILE", help="draw what its lines say, in turn")
    parser.add_argument(
        "--sampler", type=str | None, default=None, help="ddim, ddim(eta=1), ddpm, euler, heun, dpm2m or leapfrog"
    )
    parser.add_argument("--steps", type=int | None, default=None, help="sampling steps")
    parser.add_argument("--guidance", type=float | None, default=None, help="classifier-free guidance scale; 1 is none")
    parser.add_argument(
        "--guide",
        type=str | None,
        default=None,
        metavar="EXPRESSION",
        help="a penalty or a way to steer: total_variation, dps(total_variation, 2), mmps(linear(blur(2), measured, 0.05))",
    )
    parser.add_argument(
        "--measured", type=str | None, default=None, metavar="FILE", help="what `measured` is in --guide: sample k has row k"
    )
    parser.add_argument(
        "--label", type=str | None, default=None, help="draw this class alone, by its label or name in the data"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--compile", action="store_true", help=COMPILE)
    add_force(parser)
    options = parser.read(argv)
    if options.n is not None and options.n < 1:
        raise UsageError(f"--n must be at least 1, got {options.n}")
    if options.measured is not None and options.guide is None:
        raise UsageError('--measured: say what of, for example --guide "repaint(measured, hide(rows=(8, 20)))"')
    out = Path(options.out)
    if out.suffix not in (".npz", ".npy"):
        raise UsageError(f"--out {out}: the file must end in .npz, or in .npy for fields alone")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    weights_of(options.run)
    require_free(out, force=options.force)
    require_free(out.with_suffix(".png"), force=options.force, ours=True)
    return options
