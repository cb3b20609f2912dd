"""A trained denoiser as one graph of operations that runs without xhat: (z, t, conditions) to x0_hat and noise_hat."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.errors import RunError, first_line

KEY = "xhat"
"""Of what a file says about itself: an entry of ONNX's metadata, or the file xhat.json in torch's archive."""
OUTPUTS = ("x0", "noise")
ROWS, LOOKED_AT, NEAR = 2, 3, 1e-3
"""Samples that are traced, and others that the graph is checked with: it has to say the same, but for rounding."""


class _Both(nn.Module):
    """A denoiser as a function of tensors."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        prediction = self.denoiser(z, t, cond)
        return prediction.x0, prediction.noise


@dataclass(frozen=True)
class Graph:
    """A denoiser as a graph.

    Attributes:
        denoiser: that it was made of.
        program: a torch.export.ExportedProgram of (z, t, cond), z (B, ...) and t (B,) float32, cond a dict of tensors (B, ...),
            which gives x0_hat and noise_hat, (B, ...).
        sample: axes of a sample.
        cond: of one sample, (1, ...) by name.
    """

    denoiser: Denoiser
    program: Any
    sample: tuple[int, ...]
    cond: Mapping[str, Tensor]

    @classmethod
    def of(cls, denoiser: Denoiser, sample: tuple[int, ...], cond: Mapping[str, Tensor]) -> "Graph":
        """The graph, for any number of samples.

        Args:
            denoiser: goes to the CPU, and to float32.
            sample: axes of a sample.
            cond: what it is told of one sample, (1, ...) by name; the graph wants the same conditions of the same axes.

        Raises:
            RunError: the network does what no graph can say, or what depends on the values it is given.
        """
        both = _Both(denoiser).cpu().float().eval()
        told = {name: value.cpu() for name, value in cond.items()}
        given = _given(sample, told, ROWS)
        rows = {0: torch.export.Dim.DYNAMIC}
        shapes = {"z": rows, "t": rows, "cond": dict.fromkeys(told, rows)}
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(both, given, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            name = type(denoiser.net).__name__
            raise RunError(f"torch.export cannot follow {name}: {first_line(error)[:200]}") from error
        program.example_inputs = None  # they would be pickled
        _drop_idle_squeezes(program.graph_module)
        return cls(denoiser, program, sample, told)

    def write_torch(self, about: Mapping[str, Any], path: Path) -> None:
        """Write it as `torch.export.load(path).module()` reads it, a function of (z, t, cond).

        Args:
            about: what the file says about itself, for JSON.
            path: of the new file.

        Raises:
            RunError: the graph says something else than the denoiser.
        """
        with _new(path) as beside, _quiet():
            torch.export.save(self.program, beside, extra_files={f"{KEY}.json": json.dumps(about)})
            self._require_same(torch.export.load(beside).module()(*_given(self.sample, self.cond, LOOKED_AT)), path)

    def write_onnx(self, about: Mapping[str, Any], path: Path) -> None:
        """Write it as ONNX, a function of z, t and the conditions by name; of more than 2 GB the weights are a second file,
        NAME.onnx.data.

        Args:
            about: what the file says about itself, for JSON.
            path: of the new file.

        Raises:
            RunError: what writes ONNX is not installed, ONNX has no word for an operation, or ONNX Runtime says something else
                than the denoiser.
        """
        runtime = import_onnxruntime()
        inputs = [spec.arg.name for spec in self.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        names = [name.removeprefix("cond_") for name in inputs]
        try:
            with _quiet():
                # not optimized: that drops added constants as small as 1e-15, which may stand between a quotient and NaN
                own: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
                made = torch.onnx.export(self.program, input_names=names, output_names=OUTPUTS, **own)
        except Exception as error:
            raise RunError(f"ONNX cannot say what this network does: {first_line(error)[:200]}") from error
        assert made is not None
        made.model.metadata_props[KEY] = json.dumps(about)
        with _new(path) as beside, _quiet():
            made.save(beside)
            session = runtime.InferenceSession(str(beside))
            z, t, cond = _given(self.sample, self.cond, LOOKED_AT)
            wanted = {i.name for i in session.get_inputs()}
            values = {name: value.numpy() for name, value in {"z": z, "t": t, **cond}.items() if name in wanted}
            self._require_same(tuple(map(torch.from_numpy, session.run(list(OUTPUTS), values))), path)

    def _require_same(self, found: tuple[Tensor, ...], path: Path) -> None:
        with torch.no_grad():
            prediction = self.denoiser(*_given(self.sample, self.cond, LOOKED_AT))
        for own, other in zip((prediction.x0, prediction.noise), found, strict=True):
            far, size = float((own - other).abs().max()), float(own.abs().max())
            if not far <= NEAR * (1 + size):
                raise RunError(
                    f"{path.name} would say something else than the network, by {far:.2g} in {size:.2g}: nothing is written"
                )


def sampling_of(schedule: Schedule, times: Tensor, null: Mapping[str, Any] | None) -> dict[str, Any]:
    """What it takes to draw samples with the graph alone, for JSON.

    `t`, from 1 to 0, with `alpha` and `sigma` at each; `prior_std` of the noise to start from; `null`, what stands for no
    condition, where it is a number. A step of DDIM is z = alpha[i + 1] x0_hat + sigma[i + 1] noise_hat.

    Args:
        schedule: the denoiser's.
        times: of the steps.
        null: the denoiser's.
    """
    at = times.double().cpu()
    alpha, sigma = (f.cpu().tolist() for f in (schedule.alpha(at), schedule.sigma(at)))
    numbers = {name: value for name, value in (null or {}).items() if isinstance(value, int)}
    return {"t": at.tolist(), "alpha": alpha, "sigma": sigma, "prior_std": float(schedule.prior_std()), "null": numbers}


def import_onnxruntime() -> Any:
    """The library that runs ONNX, once all that writes it is there, too.

    Raises:
        RunError: one of them is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"ONNX needs onnx, onnxscript and onnxruntime: pip install 'xhat[onnx]' ({error})") from None
    return onnxruntime


def _given(sample: tuple[int, ...], cond: Mapping[str, Tensor], rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(z, t, cond) of so many samples."""
    told = {name: value.repeat_interleave(rows, 0) for name, value in cond.items()}
    z = torch.randn(rows, *sample, generator=torch.Generator().manual_seed(0))
    return z, torch.linspace(0.3, 0.7, rows), told


def _drop_idle_squeezes(module: torch.fx.GraphModule) -> None:
    """ONNX has no word for the squeeze of an axis that is longer than 1, which torch leaves as it is."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim):
        of, axis = node.args
        if isinstance(length := of.meta["val"].shape[axis], int) and length != 1:
            node.replace_all_uses_with(of)
            module.graph.erase_node(node)
    module.recompile()


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A path beside the file; what is there at the end goes to its place, the file itself last."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".xhat-") as folder:
        beside = Path(folder) / path.name
        yield beside
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == beside):
            file.replace(path.parent / file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch says much about what others have not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, UserWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        logger.setLevel(level)
