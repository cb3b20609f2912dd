"""What a run has come to: all that a checkpoint holds, and all that a resume restores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.sharded import is_split, part, split_like, whole
from xhat.distributed import from_all
from xhat.errors import RunError
from xhat.objective.objective import Objective
from xhat.runs.checkpoint import Checkpoint, checkpoint_of
from xhat.runs.given import NET, Given
from xhat.tensors import all_finite, not_finite
from xhat.training.ema import PowerAverage

TRAINED, AVERAGED = f"denoiser.{NET}", f"module.{NET}"
"""Where an objective and an average have the network."""


@dataclass
class State:
    """The weights, their average, the optimizers, and how far they have come.

    No generators: the step is the position in the data, and all randomness is a function of it. No learning rate: it follows
    from the step, the seconds and the budget.

    Attributes:
        objective: the denoiser, and what the time sampler, the losses and the multipliers have learned.
        average: of the denoiser's weights; None where the last weights are kept.
        optimizers: of the objective's parameters.
        data: fingerprint of what they are trained on.
        step: steps done.
        seconds: trained so far.
        given: of the network, what does not learn: no checkpoint has it.
        compiled: whether the network is compiled, so that a run goes on as it began; None before anybody has decided.
        tracks: averages of other widths, which are kept now and then, see `xhat.runs.averages`.
    """

    objective: Objective
    average: PowerAverage | None
    optimizers: list[Optimizer]
    data: str
    step: int = 0
    seconds: float = 0.0
    given: Given = field(default_factory=lambda: Given({}))
    compiled: bool | None = None
    tracks: list[PowerAverage] = field(default_factory=list)

    def averaged(self) -> Denoiser:
        """The denoiser to sample from: with the averaged weights, or the last ones where none are averaged."""
        model = self.objective.denoiser if self.average is None else self.average.module
        assert isinstance(model, Denoiser)
        return model

    @property
    def split(self) -> bool:
        """Whether the weights are split over the processes, which then all take part in whatever calls the network."""
        return any(map(is_split, self.objective.denoiser.net.parameters()))

    def weights(self, track: PowerAverage | None = None, *, kept: bool = True) -> dict[str, Tensor]:
        """The averaged denoiser's, whole, but for what it was given.

        Args:
            track: of this average.
            kept: by this process. Where they are split all processes ask, one keeps what it is told, on the CPU.
        """
        model = self.averaged() if track is None else track.module
        found = self.given.left_out(model.state_dict()).items()
        if not self.split:
            return dict(found)
        return {name: x.cpu() for name, x in ((name, whole(x)) for name, x in found) if kept}

    def checkpoint(self, run: Path, more: Mapping[str, Any], group: Any = None) -> Callable[[], Path]:
        """A copy of it all, and what writes that into the run's folder.

        Args:
            run: the folder.
            more: what belongs to the run, and not to its training: see `Setup.about` and `Log.state`.
            group: see `split_copy`.
        """
        state = {
            "objective": self.given.left_out(self.objective.state_dict(), TRAINED),
            "average": None if self.average is None else self.given.left_out(self.average.state_dict(), AVERAGED),
            "tracks": [self.given.left_out(track.state_dict(), AVERAGED) for track in self.tracks],
            "given": dict(self.given.sums),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seconds": self.seconds,
            "data": self.data,
            "compiled": self.compiled,
        }
        return checkpoint_of(run, self.step, {**state, **more}, group)

    def _averages(self) -> list[PowerAverage | None]:
        return [self.average, *self.tracks]

    def not_finite(self) -> str | None:
        """What of the weights, their average or the optimizers is not finite; None if all of it is. All processes ask."""
        found = self._not_finite_here()
        return next(filter(None, from_all(found)), None) if self.split else found

    def _not_finite_here(self) -> str | None:
        models = (self.objective, *(average.module for average in self._averages() if average is not None))
        if (name := next(filter(None, map(not_finite, models)), None)) is not None:
            return name
        held = (value for o in self.optimizers for state in o.state.values() for value in state.values())
        return None if all_finite(part(v) for v in held if isinstance(v, Tensor)) else "the optimizer's state"

    def _place(self, name: str, x: Tensor) -> Tensor:
        """A tensor of a checkpoint as this process holds it: its own part of what is split here, however it was before."""
        _, kind, *rest = name.split("/")
        if kind == "optimizers":
            number, _, index = rest[:3]
            parameters = [p for group in self.optimizers[int(number)].param_groups for p in group["params"]]
            return split_like(x, parameters[int(index)]) if int(index) < len(parameters) else x
        model = (
            self.tracks[int(rest.pop(0))]
            if kind == "tracks"
            else {"objective": self.objective, "average": self.average}.get(kind)
        )
        own = None if model is None else dict(model.named_parameters()).get(rest[0])
        return x if own is None else split_like(x, own)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            RunError: it was trained on other data, with another network, or with other optimizers.
        """
        state = checkpoint.placed(self._place)
        if state["data"] != self.data:
            run = checkpoint.path.parent
            raise RunError(f"the data are not those that {run} was trained on: they changed, or --data names others")
        self.given.require_same(state.get("given", {}), state["objective"], checkpoint.path, TRAINED)
        self.step, self.seconds = checkpoint.step, float(state["seconds"])
        self.compiled = state.get("compiled")
        try:
            own = self.objective.state_dict()
            self.objective.load_state_dict(self.given.put_back(state["objective"], own, TRAINED))
        except RuntimeError as error:
            line = str(error).strip().splitlines()[-1].strip()
            run = checkpoint.path.parent
            raise RunError(
                f"{checkpoint.path} does not hold the state of this config ({line}), as one of an earlier version may not: "
                f"train anew from its weights, with --init {run} and another --run"
            ) from None
        for average, saved in zip(self._averages(), [state["average"], *state.get("tracks", [])], strict=True):
            if average is not None:
                average.load_state_dict(self.given.put_back(saved, average.state_dict(), AVERAGED))
        if len(self.optimizers) != len(state["optimizers"]):
            raise RunError("optimizer.muon_lr was 0 and is not, or was not and is: a run goes on with the optimizers it has")
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            try:
                optimizer.load_state_dict(saved)
            except ValueError:
                raise RunError(
                    f"{checkpoint.path} was trained with other parameters learning: freeze what was frozen, and no more"
                ) from None
