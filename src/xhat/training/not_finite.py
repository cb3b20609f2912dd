"""Which term made a step infinite or NaN, on which samples; and the file to see it again with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from xhat.diffusion.sharded import whole
from xhat.distributed import from_all
from xhat.files.tensors import write_tensors
from xhat.objective.draw import Draw
from xhat.training.loop import micro_batch
from xhat.training.setup import Setup


@dataclass(frozen=True)
class Culprit:
    """A term that is not finite on a micro-batch of one process.

    Attributes:
        term: its name.
        what: of it, its value or its gradient.
        logsnr: the lowest and the highest noise level of the samples where it is not; None where they cannot be told apart.
        part: number of the micro-batch.
    """

    term: str
    what: str
    logsnr: tuple[float, float] | None
    part: int

    def __str__(self) -> str:
        called = f'term "{self.term}"' if self.what == "value" else f'the gradient of term "{self.term}"'
        if self.logsnr is None:
            return called
        low, high = (f"{level:.1f}" for level in self.logsnr)
        return f"{called} (at logsnr {low if low == high else f'{low} to {high}'})"


def found_not_finite(setup: Setup, run: Path) -> tuple[str, list[str]]:
    """What is not finite in the step under way, on whichever process; and the files that keep its batch, for each such process.

    The step is computed anew, before its weights change, a term at a time: first the values of all of its micro-batches, then,
    where these are finite, their gradients. All processes must ask; the answer is the same on all of them.

    Args:
        setup: of the training.
        run: the folder that keeps the batch.
    """
    own, split = list(_of_values(setup)), setup.state.split
    anywhere = any(from_all(own))
    if not anywhere and not split:  # each process looks at as many samples as it has to
        own = list(_of_gradients(setup))
    path = _keep(setup, run, own[0] if own else None) if own or (split and anywhere) else None
    everywhere = from_all((own, path))
    said = dict.fromkeys(str(c) for culprits, _ in everywhere for c in culprits)
    return " and ".join(said) or "the gradient", [kept for _, kept in everywhere if kept is not None]


def data_are_bad(setup: Setup) -> bool:
    """Whether samples of the step under way hold values that are not finite, on whichever process; all of them ask."""
    parts = (micro_batch(setup, setup.state.step, part)[1].x0 for part in range(setup.options.accumulate))
    return any(from_all(any(not x0.is_meta and not bool(torch.isfinite(x0).all()) for x0 in parts)))


def _of_values(setup: Setup) -> Iterator[Culprit]:
    seen = set[str]()
    for part in range(setup.options.accumulate):
        for name in _open_terms(setup):
            with torch.no_grad():
                draw = _draw(setup, part)
                bad = ~torch.isfinite(setup.state.objective.per_image(name, draw))
            if bool(bad.any()) and name not in seen:
                seen.add(name)
                yield _culprit(setup, name, "value", draw, bad.nonzero().flatten(), part)


def _of_gradients(setup: Setup) -> Iterator[Culprit]:
    objective = setup.state.objective
    parameters = [p for p in objective.parameters() if p.requires_grad]

    def finite(name: str, part: int, rows: Tensor) -> bool:
        draw = _draw(setup, part)
        value = objective.per_image(name, draw if len(rows) == len(draw.t) else draw.rows(rows)).mean()
        if not value.requires_grad:
            return True
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        return all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)

    seen = set[str]()
    for part in range(setup.options.accumulate):
        for name in _open_terms(setup):
            rows = torch.arange(setup.rows, device=setup.accelerator.device)
            if name in seen or finite(name, part, rows):
                continue
            seen.add(name)
            with torch.no_grad():
                draw = _draw(setup, part)
            alone = all(loss.together == 1 for loss in objective.terms[name].loss.parts())
            worst = _bisected(rows, partial(finite, name, part)) if alone else None
            yield _culprit(setup, name, "gradient", draw, worst, part)


def _bisected(left: Tensor, finite: Callable[[Tensor], bool]) -> Tensor | None:
    """One of so many samples that is not finite alone; None if none is."""
    while len(left) > 1:
        worse = next((half for half in left.tensor_split(2) if not finite(half)), None)
        if worse is None:
            return None
        left = worse
    return left


def _draw(setup: Setup, part: int) -> Draw:
    """What the step drew for a micro-batch of this process."""
    step = setup.state.step
    shard, batch = micro_batch(setup, step, part)
    with setup.autocast:
        return setup.state.objective.draw(batch.x0, step=step, cond=batch.cond, extra=batch.extra, shard=shard)


def _open_terms(setup: Setup) -> list[str]:
    objective = setup.state.objective
    return [name for name, term in objective.terms.items() if term.when(objective.seed, setup.state.step)]


def _culprit(setup: Setup, name: str, what: str, draw: Draw, rows: Tensor | None, part: int) -> Culprit:
    objective, levels = setup.state.objective, None
    if rows is not None and objective.terms[name].loss.at_drawn_time:
        logsnr = objective.denoiser.schedule.logsnr(draw.t[rows])
        levels = (float(logsnr.min()), float(logsnr.max()))
    return Culprit(name, what, levels, part)


def _keep(setup: Setup, run: Path, culprit: Culprit | None) -> str | None:
    """The weights before the step and the micro-batch that is not finite, with its times and noise; the file's name.

    Processes that share the weights all ask; one without a culprit keeps nothing.
    """
    with torch.no_grad():
        draw = _draw(setup, 0 if culprit is None else culprit.part)
    gathered = ((name, whole(value)) for name, value in setup.state.objective.state_dict().items())
    weights = {f"objective/{name}": value.cpu() for name, value in gathered if culprit is not None}
    if culprit is None:
        return None
    tensors = {"x0": draw.x0, "t": draw.t, "noise": draw.noise, "z": draw.z, **weights}
    for kind, values in (("cond", draw.cond), ("extra", draw.extra)):
        tensors |= {f"{kind}/{name}": value for name, value in (values or {}).items() if isinstance(value, Tensor)}
    process = f"-process-{setup.accelerator.process_index}" if setup.accelerator.num_processes > 1 else ""
    path = run / f"not-finite-{draw.step:08d}{process}.safetensors"
    where = {"step": str(draw.step), "first": str(draw.first), "total": str(setup.options.batch_size), "term": culprit.term}
    write_tensors(path, tensors, where)
    return path.name
