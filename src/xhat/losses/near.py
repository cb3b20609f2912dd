"""What losses share that compare with a frozen model: a second denoiser, or the same one with its adapters off."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from xhat.diffusion.denoiser import Denoiser
from xhat.networks.adapters import without_adapters
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.tensors import evaluating


class Near(Loss):
    """A loss that compares with a reference: another denoiser, or the same one with its adapters off."""

    calls_network = True

    def __init__(self, reference: Denoiser | None) -> None:
        super().__init__()
        if reference is not None and not isinstance(getattr(reference, "_orig_mod", reference), Denoiser):
            raise ValueError(
                f"a reference is a Denoiser, or None for the model without its adapters, got a {type(reference).__name__}: "
                "wrap a network in Denoiser(...); in a config, name a loss of your own that loads it, with --use FILE.py"
            )
        if reference is not None:
            reference.requires_grad_(False).eval()
        self._reference = (reference,)  # a module in a tuple is no submodule
        self._checked = reference is None

    @property
    def reference(self) -> Denoiser | None:
        """See the class."""
        return self._reference[0]

    def as_reference(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        """In which `model` is the reference."""
        return nullcontext() if self.reference is not None else without_adapters(denoiser.net)

    @staticmethod
    def alike(denoiser: Denoiser) -> AbstractContextManager[None]:
        """In which two calls drop the same: nothing. Of a network without dropout the mode says nothing, and stays."""
        return evaluating(denoiser.net) if is_random(denoiser.net) else nullcontext()

    def model(self, denoiser: Denoiser, draw: Draw) -> Denoiser:
        """The reference, on the draw's device, on the same schedule.

        Raises:
            ValueError: its schedule has other noise levels.
        """
        if self.reference is None:
            return denoiser
        reference = self.reference.to(draw.x0.device)
        if not self._checked:
            t = torch.linspace(denoiser.schedule.t_min, 1, 9, dtype=torch.float64, device=denoiser.schedule.device)
            own, other = (s.alpha(t) / (s.alpha(t) + s.sigma(t)) for s in (denoiser.schedule, reference.schedule))
            if not torch.allclose(own, other.to(own), atol=1e-6):
                raise ValueError(
                    "the reference has other noise levels at the same times: give it the schedule of the model that is trained"
                )
            self._checked = True
        return reference


def is_random(net: nn.Module) -> bool:
    """Whether it drops something at random in training mode, which it is in: features, or, as DiT does, labels."""
    parts = net.modules() if net.training else ()
    return any((isinstance(part, _DropoutNd) and part.p > 0) or getattr(part, "dropout_prob", 0) for part in parts)
