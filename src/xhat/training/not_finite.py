"""Which term made a step infinite or NaN."""

import torch
from torch import Tensor

from xhat.objective.multipliers import flat_gradient
from xhat.rng import Shard
from xhat.training.setup import Setup


def culprits(setup: Setup, losses: dict[str, Tensor]) -> str:
    """The terms that are not finite, or whose gradients are not; the same on all processes, which must all ask.

    Args:
        setup: before the weights change.
        losses: of the step.
    """
    bad = _bad_terms(setup, losses)
    terms = [f'term "{name}"' for name in bad] or [f'the gradient of term "{name}"' for name in _bad_gradients(setup)]
    return " and ".join(terms) or "the gradient"


def _bad_terms(setup: Setup, losses: dict[str, Tensor]) -> list[str]:
    names, zero = list(setup.state.objective.terms), torch.zeros((), device=setup.accelerator.device)
    flags = torch.stack([(~torch.isfinite(losses.get(name, zero))).float() for name in names])
    if setup.accelerator.num_processes > 1:  # what follows is the same on all ranks
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]


def _bad_gradients(setup: Setup) -> list[str]:
    """The terms whose gradient is not finite on this step's first micro-batch, computed anew, each alone."""
    objective, step = setup.state.objective, setup.state.step
    shard = Shard(setup.accelerator.process_index * setup.rows, setup.options.batch_size)
    batch = setup.feed.get(step, shard, setup.rows)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    bad = []
    for name, term in objective.terms.items():
        if term.when(objective.seed, step):
            with setup.autocast:
                draw = objective.draw(batch.x0, step=step, cond=batch.cond, extra=batch.extra, shard=shard)
                value = objective.per_image(name, draw).mean()
            if not bool(torch.isfinite(flat_gradient(value, parameters)).all()):
                bad.append(name)
    return bad
