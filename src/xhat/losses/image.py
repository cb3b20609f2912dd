"""Image losses: a penalty of the predicted clean image x0_hat, or of a generated sample."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.weightings import Weighting, constant, density_part, high_snr, high_snr_latents, of_size, require_weighting
from xhat.losses.decode import Decode
from xhat.losses.penalties import DrawPenalty, Paired, Penalty
from xhat.losses.penalties.base import of_images_alone, takes_draw
from xhat.objective.draw import FAR, Draw
from xhat.objective.terms import Loss
from xhat.registry import ESTIMATES, LOSSES


class ImageEstimate(Protocol):
    """How the image that a penalty sees is made; `at_drawn_time` as in `Loss`, and `calls_network` where it is True."""

    @property
    def at_drawn_time(self) -> bool:
        """Whether it depends on the drawn t."""
        ...

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor: ...


@ESTIMATES.register
@dataclass(frozen=True)
class OneStep:
    """x0_hat of the network call already made: no further call, unclamped, so that its gradient never vanishes.

    It is the mean of p(x0 | z_t), not a sample of it: a penalty of it is a lower bound of the samples' if it is convex.
    """

    at_drawn_time = True
    calls_network = False

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return draw.prediction.x0


@LOSSES.register
class ImageLoss(Loss):
    """weighting(logsnr) · penalty(image), with the image estimated from the shared draw; the penalty never sees z.

    Args:
        penalty: images (B, C, H, W) -> (B,), or a `Paired` one that also sees the clean image; one with a second parameter is
            handed the draw, with `draw.cond` and `draw.extra`. A bare nn.Module is trained along with the denoiser;
            `frozen(module)` is not.
        image: how the image is estimated: OneStep(), Rollout(...) or FullChain(...).
        weighting: where on the noise axis the penalty counts; by default `high_snr()` at the images' resolution, with `decode`
            `high_snr_latents()`. A chain from pure noise has none.
        decode: applied to the estimate first, for latent models whose penalty should see pixels: `Decode(vae)`, or any
            function; only to images whose weight is not 0. It stays the caller's: not saved, trained or put in training mode
            with this loss.
        expect: the range that clean images, decoded ones too, are to be in, within a factor of ten; None for fields and latents
            of any size. Checked once.

    Raises:
        ValueError: a noise-level weight or a paired penalty with a full chain, which starts
            from no image's noise level; when called: a penalty that returns another shape than (B,), or has no gradient.
    """

    is_penalty = True

    def __init__(
        self,
        penalty: Penalty | DrawPenalty | Paired,
        image: ImageEstimate | None = None,
        weighting: Weighting | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        expect: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if not callable(penalty):
            raise ValueError(f"a penalty is a function of images, got {penalty!r}")
        if image is not None and not (callable(image) and hasattr(image, "at_drawn_time")):
            raise ValueError(f"image must be OneStep(), Rollout(...) or FullChain(...), got {image!r}")
        if weighting is not None and not callable(weighting):
            raise ValueError(f"weighting says at which noise levels the penalty counts, as high_snr() does, got {weighting!r}")
        if expect is not None and not expect[0] < expect[1]:
            raise ValueError(f"expect is (low, high) of the images that the penalty sees, or None, got {expect}")
        self.penalty, self.image, self.expect = penalty, image or OneStep(), expect
        self._takes_draw = takes_draw(penalty)
        self._decode = (decode,)  # a module in a tuple is no submodule
        self.at_drawn_time, self.calls_network = self.image.at_drawn_time, getattr(self.image, "calls_network", False)
        if not self.at_drawn_time and weighting is not None:
            raise ValueError(f"{type(self.image).__name__} starts from pure noise, at no noise level: leave weighting out")
        if not self.at_drawn_time and isinstance(penalty, Paired):
            raise ValueError(
                f"this penalty compares with the clean image, but {type(self.image).__name__} starts from pure noise: "
                "use OneStep() or Rollout(...)"
            )
        if weighting == constant:
            warnings.warn(
                "an image loss with the same weight at all noise levels: at high noise x0_hat is the blurred mean of many "
                "images, whose penalty says little of a sample's and pulls the mean away; leave weighting out for high_snr()",
                stacklevel=2,
            )
        self.weighting = (high_snr() if decode is None else high_snr_latents()) if weighting is None else weighting
        require_weighting(self.weighting)
        self._checked = expect is None

    @property
    def decode(self) -> Callable[[Tensor], Tensor] | None:
        """See the class."""
        return self._decode[0]

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        if isinstance(self.decode, Decode):
            self.decode.of(denoiser)
        if not self._checked and self.decode is None and denoiser.decode is not None:
            warnings.warn(
                "this image loss sees latents: add decode=decode(), Decode() in Python, for one of pictures, or expect=None to "
                "say that latents are meant",
                stacklevel=2,
            )
        scale, image = self.scale(denoiser, draw), self.image(denoiser, draw)
        if not self._checked:
            seen = draw.x0 if bool(draw.x0.flatten()[:1].isfinite()) else image.detach()  # a chain may have no x0
            if draw.units is None:
                self._require_range(seen)
            self._checked = True
        if (copies := len(image) // len(draw.t)) == 1:
            return self._values(scale, image, draw)
        each = torch.arange(len(draw.t), device=draw.t.device).repeat(copies)  # several ends of each chain, one after the other
        values = self._values(scale.repeat(copies), image, draw.rows(each))
        return values.reshape(copies, -1).mean(0)

    def of_ends(self, denoiser: Denoiser, images: Tensor, draw: Draw) -> Tensor:
        """The penalty of images of one's own, made of the draw's by another loss, (B,)."""
        if isinstance(self.decode, Decode):
            self.decode.of(denoiser)
        return self._values(torch.ones_like(draw.t), images, draw)

    def _values(self, scale: Tensor, image: Tensor, draw: Draw) -> Tensor:
        """scale · penalty of each image, decoded where that counts, (B,)."""
        if self.decode is None:
            return scale * self.measure(image, draw)
        rows, each = self._decoded_rows(scale, draw)  # decoding is dear, and most noise levels may not count
        nothing = image.flatten(1)[:, :0].sum(1)  # 0, with a gradient of 0 even where the image is NaN
        if not len(rows):
            return nothing + sum(0 * p.sum() for p in self.parameters())  # of a trained penalty: DDP waits for them
        values = each * scale[rows] * self.measure(image[rows], draw.rows(rows))
        return nothing.to(values.dtype).index_put((rows,), values)

    def _decoded_rows(self, scale: Tensor, draw: Draw) -> tuple[Tensor, float]:
        """The images to decode, and how many each stands for."""
        rows = scale.nonzero().squeeze(1)
        most = getattr(self.decode, "most", None)
        if most is None or len(rows) <= most:
            return rows, 1.0
        chosen = draw.uniform(len(rows), "decoded").argsort()[:most].sort().values
        return rows[chosen.to(rows.device)], len(rows) / most

    def measure(self, image: Tensor, draw: Draw) -> Tensor:
        """The penalty of images, decoded or in the user's units, (B,); the draw is theirs, for a penalty that sees more."""
        value = self._value(self._seen(draw.physical(image)), draw)
        if not isinstance(value, Tensor) or value.shape != (len(image),):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the penalty returned {shape} instead of one value per image, ({len(image)},): "
                "reduce over pixels only, for example with x.flatten(1).mean(1)"
            )
        if image.requires_grad and not value.requires_grad:
            raise ValueError(
                "the penalty has no gradient with respect to the image: it is constant, or cut by detach, no_grad, argmax or a "
                "comparison; compute it from the images in differentiable operations"
            )
        return value

    def _value(self, seen: Tensor, draw: Draw) -> Any:
        if isinstance(self.penalty, Paired):
            with torch.no_grad():
                clean = self._seen(draw.physical(draw.x0))
            return self.penalty(seen, clean)
        return self.penalty(seen, draw) if self._takes_draw else self.penalty(seen)  # type: ignore[call-arg]

    def of_images(self, *, decoded: bool = False) -> Penalty | None:
        """The penalty as a function of images alone; None for one that needs the clean images, or the draw.

        Args:
            decoded: the images are pictures already; else they are decoded first, where this loss does that. Of pictures a loss
                that sees latents has nothing to say: None.
        """
        if not of_images_alone(self.penalty) or (decoded and self.decode is None):
            return None
        return self.penalty if decoded else self._of_images  # type: ignore[return-value]

    def scale(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        if not self.at_drawn_time:
            return torch.ones_like(draw.t)
        return of_size(self.weighting, tuple(draw.x0.shape[1:]))(denoiser.schedule.logsnr(draw.t), denoiser.schedule)

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return density_part(self.weighting, schedule, t)

    @torch.no_grad()
    def _require_range(self, x0: Tensor) -> None:
        """Once: a penalty written for [-1, 1] means nothing on 0..255. Of images to be decoded one is enough."""
        assert self.expect is not None
        low, high = (float(v) for v in self._seen(x0 if self.decode is None else x0[:1]).aminmax())
        middle, reach = (self.expect[0] + self.expect[1]) / 2, (self.expect[1] - self.expect[0]) / 2
        if max(middle - low, high - middle) > FAR * reach:
            what = "decode returns images" if self.decode is not None else "the clean images are"
            raise ValueError(
                f"{what} in [{low:.3g}, {high:.3g}]; this penalty expects [{self.expect[0]:g}, {self.expect[1]:g}]: scale "
                "them, or say with expect=(low, high) what is right, None for anything"
            )

    def _seen(self, image: Tensor) -> Tensor:
        return image if self.decode is None else self.decode(image)

    def _of_images(self, images: Tensor) -> Tensor:
        return self.penalty(self._seen(images))  # type: ignore[call-arg]
