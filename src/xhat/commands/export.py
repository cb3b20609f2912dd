"""The arguments of xhat export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from xhat.commands.parsing import add_use, new_parser
from xhat.errors import UsageError
from xhat.runs.places import weights_of

DESCRIPTION = """Write a trained run as other libraries read it.

--to diffusers DIR: what was trained of a pipeline, an adapter as pipeline.load_lora_weights(DIR) reads it, or the whole
pipeline; of a run with a UNet2DModel a pipeline with a scheduler of its table, prediction type and variance. A model card,
README.md, says what it was trained on, on which objective, and what was measured. What diffusers has no word for, a network of
ours or a continuous schedule, is refused by name.

--to onnx FILE.onnx, --to torch FILE.pt2: any network, as one graph from (z, t, conditions) to x0 and noise; ONNX Runtime runs
it, or torch.export.load(FILE).module(). With it goes, as JSON, what a sampler needs: the run's times and alpha and sigma at
each. Of more than 1.5 GiB the weights are a second file, FILE.onnx.data.

The weights are the averaged ones."""

ENDS = {"onnx": ".onnx", "torch": ".pt2"}


def read(argv: Sequence[str]) -> Any:
    """Which run to write, as what, and where.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("export", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    parser.add_argument("--to", type=Literal["diffusers", "onnx", "torch"], required=True, help="diffusers, onnx or torch")
    parser.add_argument("out", metavar="OUT", help="a new folder, or a new file")
    options = parser.read(argv)
    out = Path(options.out)
    if out.exists() and not (options.to == "diffusers" and out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"{out} exists already: name a new {'folder' if options.to == 'diffusers' else 'file'}, or move it away"
        )
    if options.to == "onnx" and (beside := out.with_name(f"{out.name}.data")).exists():
        raise UsageError(f"{beside} exists already: name a new file, or move it away")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    if options.to in ENDS and out.suffix != ENDS[options.to]:
        raise UsageError(f"{out}: the file must end in {ENDS[options.to]}")
    weights_of(options.run)
    return options
