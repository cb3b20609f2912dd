"""A trained denoiser as one graph of operations that runs without xhat: (z, t, conditions) to x0_hat and noise_hat."""

import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.errors import RunError, first_line
from xhat.files.atomic import naming

KEY = "xhat"
"""Of what a file says about itself: an entry of ONNX's metadata, or the file xhat.json in torch's archive."""
INPUTS, OUTPUTS = ("z", "t"), ("x0", "noise")
ROWS, LOOKED_AT, NEAR = 2, 3, 1e-3
"""Samples that are traced, and others that the graph is checked with: it has to say the same, but for rounding."""
COLORS = re.compile(r"\x1b\[[\d;]*m")
TRACES = ("stack_trace", "pkg.torch.onnx.stack_trace")
"""Where a graph says from which files it comes: nobody's business but its author's."""


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
            RunError: the network does what no graph can say, or what depends on the values or the number of samples.
        """
        if taken := [name for name in cond if name in (*INPUTS, *OUTPUTS)]:
            raise RunError(f"a condition is called {taken[0]}, as an end of the graph is: give it another name")
        both = _Both(denoiser).cpu().float().eval()
        told = {name: value.cpu() for name, value in cond.items()}
        rows = {0: torch.export.Dim.DYNAMIC}
        shapes = {"z": rows, "t": rows, "cond": dict.fromkeys(told, rows)}
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(both, _given(sample, told, ROWS), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            name = type(denoiser.net).__name__
            raise RunError(f"torch.export cannot follow {name}: {_why(error)}") from error
        program.example_inputs = None  # they would be pickled
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                _drop_idle_squeezes(part)
                for node in part.graph.nodes:
                    node.meta.pop(TRACES[0], None)
        return cls(denoiser, program, sample, told)

    def write_torch(self, about: Mapping[str, Any], path: Path) -> None:
        """Write it as `torch.export.load(path).module()` reads it, a function of (z, t, cond).

        Args:
            about: what the file says about itself, for JSON.
            path: of the new file.

        Raises:
            RunError: the graph says something else than the denoiser.
            OSError: it cannot be written.
        """
        text = json.dumps(about, allow_nan=False)
        with _new(path) as beside, _quiet():
            with _Kept(beside) as file:
                torch.export.save(self.program, cast(IO[bytes], file), extra_files={f"{KEY}.json": text})
            self._require_same(torch.export.load(beside).module()(*_given(self.sample, self.cond, LOOKED_AT)), path)

    def write_onnx(self, about: Mapping[str, Any], path: Path) -> list[Path]:
        """Write it as ONNX, a function of z, t and the conditions by name.

        Args:
            about: what the file says about itself, for JSON.
            path: of the new file.

        Returns:
            The files: of more than 1.5 GiB the weights are a second one, NAME.onnx.data.

        Raises:
            RunError: what writes ONNX is not installed, ONNX has no word for an operation, or ONNX Runtime refuses the graph or
                says something else than the denoiser.
            OSError: it cannot be written.
        """
        runtime, text = import_onnxruntime(), json.dumps(about, allow_nan=False)
        inputs = [spec.arg.name for spec in self.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        names = [name.removeprefix("cond_") for name in inputs]
        try:
            with _quiet():
                # not optimized: that drops added constants as small as 1e-15, which may stand between a quotient and NaN
                own: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
                made = torch.onnx.export(self.program, input_names=names, output_names=OUTPUTS, **own)
        except Exception as error:
            raise RunError(f"ONNX cannot say what this network does: {_why(error)}") from error
        assert made is not None
        made.model.metadata_props[KEY] = text
        for node in made.model.graph.all_nodes():
            for name in TRACES:
                node.metadata_props.pop(name, None)
        with _new(path) as beside, _quiet():
            made.save(beside)
            self._require_same(self._run(runtime, beside), path)
            return [path.parent / file.name for file in sorted(beside.parent.iterdir())]

    def _run(self, runtime: Any, file: Path) -> tuple[Tensor, ...]:
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4  # what is wrong is raised all the same
        z, t, cond = _given(self.sample, self.cond, LOOKED_AT)
        try:
            session = runtime.InferenceSession(str(file), settings)
            wanted = {i.name for i in session.get_inputs()}
            values = {name: value.numpy() for name, value in {"z": z, "t": t, **cond}.items() if name in wanted}
            return tuple(map(torch.from_numpy, session.run(list(OUTPUTS), values)))
        except Exception as error:  # of its own kinds
            raise RunError(f"ONNX Runtime does not take what this network does: {_why(error)}") from error

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
        times: of the steps; what is below 0, where nothing is called, is written as 0.
        null: the denoiser's.
    """
    at = times.double().to(schedule.device)
    alpha, sigma = (f.detach().cpu().tolist() for f in (schedule.alpha(at), schedule.sigma(at)))
    numbers = {name: _number(value) for name, value in (null or {}).items() if _number(value) is not None}
    start = float(schedule.prior_std().detach())
    return {"t": at.clamp(min=0).cpu().tolist(), "alpha": alpha, "sigma": sigma, "prior_std": start, "null": numbers}


def _number(value: Any) -> int | None:
    """A class, as a number or as a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        return int(value)
    return value if isinstance(value, int) else None


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


def _why(error: BaseException) -> str:
    """The line that says most: that of the innermost cause, or what torch says of a size that it had to fix."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = COLORS.sub("", str(error)).strip().splitlines()
    if any("onstraints violated" in line or "pecializ" in line for line in lines):
        return "what it does depends on the number of samples"
    return (lines[0] if lines else first_line(error))[:200]


def _drop_idle_squeezes(module: torch.fx.GraphModule) -> None:
    """ONNX has no word for the squeeze of an axis that is longer than 1, which torch leaves as it is."""
    aten = torch.ops.aten
    for target in (aten.squeeze.dim, aten.squeeze.dims):
        for node in module.graph.find_nodes(op="call_function", target=target):
            of, axes = node.args[0], node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
            shape = of.meta["val"].shape
            left = [axis for axis in axes if not isinstance(shape[axis], int) or shape[axis] == 1]
            if len(left) == len(axes):
                continue
            with module.graph.inserting_before(node):
                put = module.graph.call_function(aten.squeeze.dims, (of, left)) if left else of
            if left:
                put.meta = dict(node.meta)
            node.replace_all_uses_with(put)
            module.graph.erase_node(node)
    module.recompile()


class _Kept(io.RawIOBase):
    """A file that torch writes: an error of the system is raised by `close`, because within a write torch ends the process."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def close(self) -> None:
        super().close()
        self.file.close()
        if self.error is not None:
            raise self.error


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A path beside the file; what is there at the end goes to its place, the file itself last."""
    with naming(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".xhat-") as folder:
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
