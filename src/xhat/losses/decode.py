"""Images from latents inside of a loss, at the memory of a few of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError, out_of_memory
from xhat.networks.autoencoders import decoded
from xhat.registry import DECODERS


@DECODERS.register
class Decode:
    """Images of latents by a frozen autoencoder: ImageLoss(reward, decode=Decode(vae)).

    Neither the autoencoder nor this belongs to the loss: it is not saved, trained or put in training mode with it; it goes to
    where the latents are. Its parameters stop requiring gradients.

    Args:
        vae: an autoencoder of diffusers, whose scale and shift are taken off first; or any function of latents. None is that of
            the pipeline that is trained: decode() in a config.
        checkpoint: keep the latents alone, and decode again in the backward pass: the same gradient, for one decoding more.
        chunk: images decoded at a time.
        most: decode at most so many of a batch's images, chosen at random at each step, each standing for as many as were left
            out, so that the mean is right; None decodes all whose weight is not 0. `ImageLoss` chooses.

    Raises:
        ValueError: no whole numbers from 1.
    """

    def __init__(self, vae: Any = None, checkpoint: bool = True, chunk: int = 4, most: int | None = None) -> None:
        if chunk < 1 or (most is not None and most < 1):
            raise ValueError(f"Decode(chunk={chunk}, most={most}): both are 1 or more")
        self.checkpoint, self.chunk, self.most = checkpoint, chunk, most
        self._vae = vae
        self._of: Callable[[Tensor], Tensor] | None = vae
        if hasattr(vae, "decode") and hasattr(vae, "config"):
            vae.requires_grad_(False).eval()
            self._of = self._decoded

    def of(self, denoiser: Denoiser) -> None:
        """Decode as the pipeline of this denoiser does, if no autoencoder was given.

        Raises:
            ValueError: it has none.
        """
        if self._of is None and denoiser.decode is None:
            raise ValueError("decode() is that of a pipeline, and this network came without one: give it, Decode(vae)")
        self._of = self._of or denoiser.decode

    def __call__(self, latents: Tensor) -> Tensor:
        """Images (B, ...) of latents (B, ...), with their gradient.

        Raises:
            RunError: the memory does not suffice.
        """
        again, one = self.checkpoint and torch.is_grad_enabled() and latents.requires_grad, self._of
        if one is None:
            raise ValueError("decode() has no autoencoder: give it, Decode(vae)")
        try:
            parts = latents.split(self.chunk)
            return torch.cat([recompute(one, part, use_reentrant=False) if again else one(part) for part in parts])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            few = "lower most, or decode smaller latents" if self.chunk == 1 else f"lower chunk ({self.chunk}), or give most"
            raise RunError(
                f"out of memory while decoding latents {tuple(latents.shape)}: {few}, Decode(vae, chunk=1)"
            ) from error

    def _decoded(self, latents: Tensor) -> Tensor:
        if self._vae.device != latents.device:
            self._vae.to(latents.device)
        return decoded(self._vae, latents)
