"""The objective: a sum of per-image terms over one shared draw (x0, t, noise, z) and one network call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from typing import TYPE_CHECKING, NamedTuple, SupportsInt

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from xhat.data.batch import Extra, require_rows
from xhat.diffusion.calling import unwrapped
from xhat.diffusion.denoiser import Condition, Denoiser, Pending
from xhat.diffusion.sharded import whole
from xhat.diffusion.times import Stratified, TimeSampler
from xhat.objective.balance import Balancer
from xhat.objective.calls import Calls, whole_number
from xhat.objective.describe import described
from xhat.objective.draw import Draw
from xhat.objective.effective_samples import warn_of_waste
from xhat.objective.global_batch import whole_batch
from xhat.objective.multipliers import Multiplier
from xhat.objective.pairing import Pairing, warn_of_bounds
from xhat.objective.randomness import Begun, Random, noise_like, random_of
from xhat.objective.samples import look_at, no_samples, samples_of
from xhat.objective.terms import Term
from xhat.rng import Shard
from xhat.tensors import over_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Objective(nn.Module):
    """sum_k weight_k · mean_b(importance_b · loss_k,b) over one draw; this module is what a trainer prepares and calls.

    Args:
        denoiser: what is trained.
        terms: name -> Term.
        times: the timestep sampling distribution, `Stratified()` by default.
        seed: of all draws; sample k of step n depends on (seed, n, k) alone.
        input_perturbation: gamma of Ning et al. 2023 (Input perturbation reduces exposure bias, algorithm 1): the network
            is shown alpha x0 + sigma (noise + gamma xi) instead of z. All else is as without: z, the noise, and x0_hat, which
            is what the network's output says of z, so that the loss is the same loss in every space.
        pairing: which of a batch's noises each sample sees, Immiscible(); None is its own.

    Attributes:
        watch: called by each training call with (draw, values (B,) of each term), importance-weighted; None is nobody.

    Raises:
        ValueError: no terms, a reserved or dotted name, or a loss that the denoiser cannot serve.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        terms: Mapping[str, Term],
        times: TimeSampler | None = None,
        *,
        seed: int = 0,
        input_perturbation: float = 0.0,
        pairing: Pairing | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError('an objective needs at least one term, for example {"denoise": Term(Denoising())}')
        for name in terms:
            if name == "loss" or "." in name:
                raise ValueError(f'term name "{name}" is not possible: "loss" is the sum, and dots separate config keys')
        self.denoiser, self.terms, self.seed = denoiser, dict(terms), seed
        self.input_perturbation, self.pairing = input_perturbation, pairing
        self.times = times if times is not None else Stratified()
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self.balancer = Balancer(self.terms)
        self.multipliers = nn.ModuleDict(self.balancer.multipliers)
        self.calls = Calls()
        self.watch: Callable[[Draw, Mapping[str, Tensor]], None] | None = None
        warn_of_waste(self.terms, self.times, denoiser.schedule)
        warn_of_bounds(pairing, self.times, self.terms)
        self._looked = False

    def forward(
        self,
        x0: Tensor | None = None,
        *,
        step: SupportsInt | None = None,
        cond: Condition | None = None,
        extra: Extra | None = None,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
        shape: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one batch.

        What the draw is a function of, beside the seed:

        - training, no `step`: a step of its own, the one after the last; the objective counts them, in a buffer.
        - training, the same `step` again and no `shard`: the next micro-batch of that step, with noise of its own.
        - `step` and `shard` named: these alone. For calls that are repeated for the same batch: activation checkpointing around
          the objective, a closure of LBFGS.
        - evaluation, no `step`: step 0, so that two validation losses differ by the weights alone; name the batch's number as
          the step to give each batch noise levels of its own.

        Args:
            x0: clean samples (B, ...), about -1 to 1: images (B, C, H, W), signals, volumes, vectors. None where the terms that
                count start from pure noise, as chains do: then `shape` says how many, and of what shape. A tensor on the meta
                device, which has a shape and no values, says the same.
            step: the training step, which the draw is a function of.
            cond: keyword arguments of the network.
            extra: what terms and penalties see as `draw.extra`, and the network never: anything with a row for each sample.
            generator: draws times and noise from here instead of from (seed, step).
            shard: which samples of the global batch x0 holds, so that micro-batches are what one call on all of them is; by
                default the batches of all ranks, in order, are the global batch.
            shape: (B, ...) of the samples, where there is no x0.

        Returns:
            {"loss": the weighted sum, the one value with a graph; each term's name: its unweighted mean; "name.lambda" and what
            else a multiplier reports of its term}, for the terms that count at this step.

        Raises:
            ValueError: a term that cannot be computed, by name; a step that is no whole number; an extra of other rows; neither
                x0 nor a shape.
        """
        x0, given = samples_of(x0, shape, self.denoiser.net)
        begin = self._begin_apart if torch.compiler.is_compiling() else self._begin
        begun: Begun = begin(x0, step, generator, shard, given=given)
        number, place, opens_step, gates, random = begun
        chains = any(gates[name] and term.loss.calls_network for name, term in self.terms.items())
        reads = next((name for name, term in self.terms.items() if gates[name] and term.loss.at_drawn_time), None)
        if reads is not None and not given:
            raise ValueError(
                f'term "{reads}" is of clean samples: give x0, or leave the shape to terms that start from pure noise'
            )
        how = _Call(chains, made=reads is not None, given=given)
        draw = self._draw(x0, random, number, cond, extra, generator, place, how)
        each = {name: self.per_image(name, draw) for name, gate in gates.items() if gate}
        values = {name: value.mean() for name, value in each.items()}
        balance = self.balancer.balance(self.denoiser, values, gates, number, first=opens_step, measure=self.training)
        total = self.balancer.weighted_sum(balance, values, x0.new_zeros(()))
        if self.training and self.watch is not None:
            self.watch(draw, each)
        if self.training:
            self.balancer.learn(self.denoiser, self.times, draw, each, balance, place.total)
        if not values:
            # no gate is open: a gradient of zero, not none
            total = sum((0 * whole(p).sum() for p in self.denoiser.parameters() if p.requires_grad), start=x0.new_zeros(()))
        for name in gates.keys() - values.keys():
            # parameters of the term's own (a learned uncertainty) get a gradient of 0, which DDP waits for
            total = total + sum((0 * p.sum() for p in self.terms[name].loss.parameters()), start=x0.new_zeros(()))
        # kept in a list, a graph would be a leak; a total that is one term's own value may be divided in place by its user
        seen = {name: value.detach().clone() if value is total else value.detach() for name, value in values.items()}
        learned = {name: m for name, m in self.balancer.multipliers.items() if name in values}
        return {"loss": total, **seen, **{f"{n}.{k}": v for n, m in learned.items() for k, v in m.report().items()}}

    def draw(
        self,
        x0: Tensor,
        *,
        step: SupportsInt,
        cond: Condition | None = None,
        extra: Extra | None = None,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
        checkpoint: bool = False,
    ) -> Draw:
        """The shared draw of `forward`, network call included; `checkpoint` recomputes the call in the backward pass.

        It counts nothing: the same step gives the same draw, that of the step's first micro-batch.
        """
        step, shard = whole_number(step), shard or whole_batch(x0.shape[0])
        x0, given = samples_of(x0, None, self.denoiser.net)
        how, random = _Call(checkpoint, made=given, given=given), self._random(x0, step, generator, shard, given=given)
        return self._draw(x0, random, step, cond, extra, generator, shard, how)

    def _draw(
        self,
        x0: Tensor,
        random: Random,
        step: int,
        cond: Condition | None,
        extra: Extra | None,
        generator: torch.Generator | None,
        shard: Shard,
        how: "_Call",
    ) -> Draw:
        require_rows(extra, len(x0), "extra")
        t, importance, noise, more = random
        z, shown = self._noisy(x0, t, noise), None
        if more is not None:
            shown = self._noisy(x0, t, noise + self.input_perturbation * more)
        call = partial(self.denoiser, z, t, cond, checkpoint=how.checkpoint, seen=shown) if how.given else no_samples
        prediction = call() if how.made else Pending(self.denoiser, z, t, call)
        at, units = shard.number, self.denoiser.units
        return Draw(x0, t, noise, z, prediction, importance, cond, step, self.seed, at, generator, extra, None, shown, units)

    def _begin(
        self, x0: Tensor, step: SupportsInt | None, generator: torch.Generator | None, shard: Shard | None, *, given: bool
    ) -> Begun:
        """What a graph of torch.compile cannot hold: it comes before all that one can."""
        number, place, opens_step = self._place(x0, step, shard)
        gates = {name: float(term.when(self.seed, number)) for name, term in self.terms.items()}
        return Begun(number, place, opens_step, gates, self._random(x0, number, generator, place, given=given))

    _begin_apart = _disable_dynamo(_begin)  # torch.compiler.disable would import torch._dynamo here, and not at the first call

    def _random(self, x0: Tensor, step: int, generator: torch.Generator | None, shard: Shard, *, given: bool) -> Random:
        """What a draw is a function of, but for the samples, which are looked at first."""
        if given and not self._looked:
            look_at(x0, normalised=self.denoiser.units is not None)
            self._looked = True
        schedule, perturbed = self.denoiser.schedule, self.input_perturbation > 0
        found = random_of(x0, self.times, schedule, self.seed, step, generator, shard, perturbed=perturbed)
        return found if self.pairing is None or not given else found._replace(noise=self.pairing(x0, found.noise))

    def draw_at(self, x0: Tensor, t: Tensor, *, step: int, cond: Condition | None = None, extra: Extra | None = None) -> Draw:
        """A draw at given times (B,) instead of the sampler's, with the noise of that step and no perturbation."""
        first_sample, once = whole_batch(x0.shape[0]).number, torch.ones_like(t)
        noise = noise_like(x0, "noise", self.seed, step, first_sample)
        z = self._noisy(x0, t, noise)
        prediction, units = self.denoiser(z, t, cond), self.denoiser.units
        return Draw(x0, t, noise, z, prediction, once, cond, step, self.seed, first_sample, None, extra, None, None, units)

    def _place(self, x0: Tensor, step: SupportsInt | None, shard: Shard | None) -> tuple[int, Shard, bool]:
        """The step of a call, its place in it, counted where they are not given, and whether it is the step's first call."""
        number = None if step is None else whole_number(step)
        if not self.training:
            return number or 0, shard or whole_batch(x0.shape[0]), True
        whole = whole_batch(x0.shape[0])
        number, before = self.calls.next(number, whole.total, None if shard is None else shard.total)
        return number, shard or replace(whole, before=before), before == 0

    def described(self) -> dict[str, str]:
        """The five choices and what else says which objective it is, in words, by name."""
        denoiser = self.denoiser
        network, parameters = type(unwrapped(denoiser.net)).__name__, sum(p.numel() for p in denoiser.net.parameters())
        perturbed = {"input perturbation": f"{self.input_perturbation:g}"} if self.input_perturbation else {}
        perturbed |= {"pairing": described(self.pairing)} if self.pairing is not None else {}
        return {
            "network output": f"{denoiser.target.name}, of {network} with {parameters:,} parameters",
            **{f"term {name}": repr(term) for name, term in self.terms.items()},
            "times": f"{described(self.times)} on {described(denoiser.schedule)}{self._reach()}",
            "reverse variance": described(denoiser.variance),
            **perturbed,
            "seed": str(self.seed),
        }

    def _reach(self) -> str:
        schedule = self.denoiser.schedule
        if any(True for _ in schedule.parameters()):
            return ", whose ends are learned"
        ends = torch.tensor([schedule.t_min, 1.0], dtype=torch.float64, device=schedule.device)
        high, low = schedule.logsnr(ends).detach().tolist()
        return f", logsnr {low:.3g} to {high:.3g}"

    def __repr__(self) -> str:
        found = self.described()
        width = max(map(len, found))
        return "\n".join(["Objective", *(f"  {name:<{width}}  {text}" for name, text in found.items())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.described().items())
        return f"<table>{rows}</table>"

    def plot(self) -> "Figure":
        """A matplotlib figure: how much each noise level counts relative to the bound, and how often it is drawn."""
        from xhat.objective.plot import plot

        return plot(self.denoiser.schedule, self.times, self.effective_weighting)

    def effective_weighting(self, logsnr: Tensor) -> Tensor:
        """The whole objective's weight on the noise error relative to the bound's, w(logsnr) of Kingma & Gao 2023, eq. 3.

        L = ½ E_t[(-d logsnr/dt) w(logsnr) ‖noise - noise_hat‖²] up to the number of pixels; summed over the terms that are
        weighted squared errors, whatever space they are written in. Gates count as open; times that are `Uncorrected` weigh.

        Args:
            logsnr: (N,).
        """
        schedule = self.denoiser.schedule
        total = torch.zeros_like(logsnr)
        for term in self.terms.values():
            weight = term.loss.noise_weight(self.denoiser, logsnr)
            if weight is not None and not isinstance(term.weight, Multiplier):
                total = total + term.weight * weight
        t = schedule.t_of(logsnr.to(torch.float64))
        return total * self.times.allocation(schedule, t).to(total) / (-0.5 * schedule.dlogsnr(t)).to(logsnr.dtype)

    def _noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        schedule = self.denoiser.schedule
        return torch.addcmul(over_images(schedule.alpha(t), x0) * x0, over_images(schedule.sigma(t), x0), noise)

    def per_image(self, name: str, draw: Draw) -> Tensor:
        """A term's values, importance-weighted, (B,).

        Raises:
            ValueError: it cannot be computed; the message names the term.
        """
        loss = self.terms[name].loss
        try:
            value = loss(self.denoiser, draw)
        except ValueError as error:
            raise ValueError(f'term "{name}": {error}') from error
        if value.shape != draw.t.shape:
            raise ValueError(
                f'term "{name}" returned shape {tuple(value.shape)} instead of one value per image, ({len(draw.t)},): '
                "reduce over pixels only, for example with x.flatten(1).mean(1)"
            )
        assert isinstance(value, Tensor)
        return value * draw.importance if loss.at_drawn_time else value


class _Call(NamedTuple):
    """How a draw's network call is made: recomputed in the backward pass, at once or when it is read, on samples or on none."""

    checkpoint: bool
    made: bool = True
    given: bool = True
