"""The training loop: batches by number, one objective, checkpoints, pictures, and a way to stop and go on."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from xhat import rng as counted
from xhat.config.build import build_denoiser, build_objective, build_sampling
from xhat.config.config import Config
from xhat.data.images import Images
from xhat.data.shape import data_shape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import ConfigError, RunError
from xhat.evaluation.pictures import grid_columns, save_grid, save_losses
from xhat.objective.multipliers import FromGradients, flat_gradient
from xhat.rng import Shard
from xhat.runs.checkpoint import Checkpoint, save_checkpoint
from xhat.runs.initial import load_into
from xhat.runs.metrics import read_metrics
from xhat.runs.weights import WEIGHTS, read_weights, save_weights
from xhat.training.batches import Batches
from xhat.training.budget import Budget, Stop
from xhat.training.ema import power_average
from xhat.training.hardware import compile_network, fast_bf16, keep_buffers, repays_compiling
from xhat.training.held_out import HeldOut
from xhat.training.log import Log
from xhat.training.optimizers import build_optimizers, learning_rate_factor

PICTURE_IMAGES, PICTURE_STEPS = 64, 20


class Trainer:
    """One run on this process.

    Args:
        config: what and how.
        data: the training images.
        run: folder for checkpoints, metrics and pictures; it exists.
        checkpoint: go on from here.
        held_out: images to measure on while training.

    Raises:
        RunError: no budget, or a batch that cannot be divided.
        ConfigError: choices of the config that do not fit together.
    """

    def __init__(
        self, config: Config, data: Images, run: Path, checkpoint: Checkpoint | None = None, held_out: Images | None = None
    ) -> None:
        self.config, self.run, self.budget = config, run, Budget(config)
        self.shape = data_shape(data, config.labels)
        torch.manual_seed(config.seed)
        self.denoiser = build_denoiser(config, self.shape)
        if config.init is not None and checkpoint is None:
            load_into(self.denoiser, config.init, self.shape)
        self.objective = build_objective(config, self.denoiser)
        gpu = torch.cuda.is_available()
        bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(torch.device("cuda" if gpu else "cpu")))
        self.accelerator = Accelerator(mixed_precision="no", cpu=not gpu)
        # Accelerate keeps its precision for the whole process; with our own context a second run may have another
        self.autocast = torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16)
        parts = self.accelerator.num_processes * config.accumulate
        if config.batch_size % parts:
            raise RunError(f"batch_size {config.batch_size} must be a multiple of processes · accumulate = {parts}")
        self.rows = config.batch_size // parts
        self.objective.to(self.accelerator.device)
        told = self.shape.classes
        self.batches = Batches(data, told, self.accelerator.device, config.batch_size, config.seed, config.label_dropout)
        self.held_out = None if held_out is None else HeldOut(config, held_out, self.shape, self.accelerator.device)
        self._refuse_what_cannot_run()
        self.average = power_average(self.denoiser, config.ema) if config.ema else None
        self.optimizers = build_optimizers(self.objective, config.optimizer)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.step, self.seconds, self.resumed_from = 0, 0.0, checkpoint
        self.fingerprint = self.batches.fingerprint()
        if checkpoint is not None:
            self._restore(checkpoint)

    def fit(self) -> bool:
        """Train until the budget is spent.

        Returns:
            Whether it was; False after Ctrl-C, with the state saved.

        Raises:
            RunError: a loss or a gradient is not finite; the last good state is kept.
        """
        self.log = Log(self.run, self.accelerator, self.config.log_every, self.step, self.config.batch_size)
        stop, first, ended = Stop(), self.step, False
        try:
            self._prepare()
            while not ended and self._progress() < 1:
                rate = self._set_learning_rate()
                losses, norm = self._gradients()
                bad, asked, self.seconds = self._agree(losses, norm, stop.asked)
                if bad:
                    raise RunError(self._blame(losses))
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if self.average is not None:
                    self.average.update_parameters(self.denoiser)
                self.step += 1
                ended = asked or self._progress() >= 1
                found = self._measured(ended)
                self.log.step(self.step, losses, self._progress(), self.seconds, rate, norm, found)
                if ended or self.step % self.config.checkpoint_every == 0:
                    self._save()
                if not asked and (self.step % self.config.sample_every == 0 or ended):
                    self._picture()
            if self.accelerator.is_main_process and self.step == first:
                self._mend_weights()
            elif self.accelerator.is_main_process:
                save_losses(read_metrics(self.run), self.run / "losses.png")
        finally:
            self.log.close()
            stop.restore()
        self.accelerator.wait_for_everyone()  # without it gloo may abort while the others are still writing
        # DDP's reducer goes first: were it the last to hold the process group, that would end under the GIL, and hang if a
        # thread of gloo, still busy with the barrier above, waits for the GIL
        self.prepared = self.objective
        self.accelerator.free_memory()
        self.accelerator.end_training()
        return not stop.asked

    def final_weights(self) -> Denoiser:
        """The denoiser with the averaged weights."""
        model = self.denoiser if self.average is None else self.average.module
        assert isinstance(model, Denoiser)
        return model

    def _progress(self) -> float:
        return self.budget.progress(self.step, self.seconds)

    def _set_learning_rate(self) -> float:
        factor = learning_rate_factor(self.step, self._progress(), self.config.optimizer.warmup_steps)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return float(self.peaks[0] * factor)

    def _gradients(self) -> tuple[dict[str, Tensor], Tensor]:
        """Losses and clipped gradients of one step, over all micro-batches; the norm before clipping."""
        rank, world, parts = self.accelerator.process_index, self.accelerator.num_processes, self.config.accumulate
        # dropout and the like, in networks that have it: a function of (seed, step, rank), so nothing to checkpoint
        torch.manual_seed(counted.generator(self.config.seed, "network", self.step, rank).initial_seed())
        losses: dict[str, Tensor] = {}
        for part in range(parts):
            shard = Shard((part * world + rank) * self.rows, self.config.batch_size)
            x0, cond = self.batches.get(self.step, shard, self.rows)
            quiet = self.accelerator.no_sync(self.prepared) if part < parts - 1 else contextlib.nullcontext()
            with quiet:
                with self.autocast:
                    values = self.prepared(x0, step=self.step, cond=cond, shard=shard)
                self.accelerator.backward(values["loss"] / parts)
            for name, value in values.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach() / parts
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optimizer.grad_clip)
        assert norm is not None
        return losses, norm

    def _agree(self, losses: dict[str, Tensor], norm: Tensor, asked: bool) -> tuple[bool, bool, float]:
        """Whether something is not finite, whether to stop, and the time: the same answer on all ranks."""
        bad = not bool(torch.isfinite(losses["loss"] + norm))
        seconds = time.perf_counter() - self._started
        if self.accelerator.num_processes == 1:
            return bad, asked, seconds
        votes = torch.tensor([bad, asked, seconds], dtype=torch.float64, device=self.accelerator.device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes[0]), bool(votes[1]), float(votes[2])

    def _blame(self, losses: dict[str, Tensor]) -> str:
        """What to say of a step that is not finite. Checkpoints before it are good; without one, this state is the best."""
        if not list(self.run.glob("checkpoint-*")):
            self._save()
        zero = torch.zeros((), device=self.accelerator.device)
        flags = torch.stack([(~torch.isfinite(losses.get(name, zero))).float() for name in self.objective.terms])
        if self.accelerator.num_processes > 1:  # what follows is the same on all ranks
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad = [name for name, flag in zip(self.objective.terms, flags.tolist(), strict=True) if flag]
        terms = [f'term "{name}"' for name in bad] or [f'the gradient of term "{name}"' for name in self._bad_gradients()]
        return (
            f"{' and '.join(terms) or 'the gradient'} is not finite at step {self.step}: the last good state is kept in "
            f"{self.run}; lower optimizer.lr, or that term's weight"
        )

    def _bad_gradients(self) -> list[str]:
        """The terms whose gradient is not finite on this step's first micro-batch, computed anew, each alone."""
        shard = Shard(self.accelerator.process_index * self.rows, self.config.batch_size)
        x0, cond = self.batches.get(self.step, shard, self.rows)
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        bad = []
        for name, term in self.objective.terms.items():
            if term.when(self.config.seed, self.step):
                with self.autocast:
                    draw = self.objective.draw(x0, step=self.step, cond=cond, shard=shard)
                    value = self.objective.per_image(name, draw).mean()
                if not bool(torch.isfinite(flat_gradient(value, parameters)).all()):
                    bad.append(name)
        return bad

    def _refuse_what_cannot_run(self) -> None:
        """Every term on two images, and the sampler's plan: what does not fit is said before anything is written."""
        try:
            x0, cond = self.batches.get(0, Shard(0, self.config.batch_size), min(2, self.rows))
            draw = self.objective.draw(x0, step=0, cond=cond, shard=Shard(0, len(x0)))
            for name in self.objective.terms:
                try:
                    self.objective.per_image(name, draw)
                except (AttributeError, RuntimeError, TypeError) as error:  # of a name that is no penalty, sampler or weight
                    line = str(error).strip().splitlines()[0]
                    raise RunError(f'term "{name}" ({self.config.terms[name].loss}) cannot be computed: {line}') from error
            build_sampling(self.config.sampling, self.denoiser.schedule)
        except ConfigError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from None

    def _prepare(self) -> None:
        """Compile where it pays, and hand the objective to Accelerate."""
        self._started = time.perf_counter() - self.seconds
        if self.resumed_from is not None:
            self.log.say(f"going on from {self.resumed_from.path.name}, step {self.step}")
        trains_variance = any(term.loss.trains_variance for term in self.objective.terms.values())
        if self.denoiser.variance.outputs > 1 and not trains_variance:
            self.log.say("variance: no term of this objective trains the learned variance; it stays halfway in log scale")
        wanted, device = self.config.compile, self.accelerator.device
        if wanted == "on" or (wanted == "auto" and repays_compiling(device, self.budget.steps, self.budget.seconds)):
            self._compile()
        self.prepared, *self.optimizers = self.accelerator.prepare(self.objective, *self.optimizers)

    def _compile(self) -> None:
        self.log.say("compiling the network: about half a minute, the first time")
        if any(isinstance(m, FromGradients) for m in self.objective.multipliers.values()):
            keep_buffers()
        x0, cond = self.batches.get(0, Shard(0, self.config.batch_size), self.rows)
        times = torch.full((self.rows,), 0.5, device=self.accelerator.device)
        failure = compile_network(self.denoiser.net, x0, times, cond or {}, self.autocast)
        if failure:
            self.log.say(f"the network was not compiled, training goes on without: {failure}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state["data"] != self.fingerprint:
            raise RunError(f"the data are not those that {self.run} was trained on: they changed, or --data names others")
        self.step, self.seconds = checkpoint.step, float(state["seconds"])
        self.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _save(self) -> None:
        """Both artefacts: the whole training state, and the weights to sample from."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {
                "objective": self.objective.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "seconds": self.seconds,
                "data": self.fingerprint,
            }
            save_checkpoint(self.run, self.step, state)
            save_weights(self.run / WEIGHTS, self.final_weights(), self.config, self.shape, self.step)

    def _mend_weights(self) -> None:
        """Write the weights anew if they are missing, damaged, or name data that moved: nothing is left to train that would."""
        try:
            mend = read_weights(self.run).values.get("data") != self.config.data
        except RunError:
            mend = True
        if mend:
            save_weights(self.run / WEIGHTS, self.final_weights(), self.config, self.shape, self.step)

    def _measured(self, ended: bool) -> dict[str, float]:
        """The averaged weights on held-out images, when it is time; no rank but the first has to wait for it."""
        due = self.held_out is not None and self.held_out.due(self.step, ended) and self.accelerator.is_main_process
        return self.held_out.measure(self.final_weights()) if due and self.held_out is not None else {}

    def _picture(self) -> None:
        if not self.accelerator.is_main_process:
            return
        how = replace(self.config.sampling, steps=min(self.config.sampling.steps, PICTURE_STEPS))
        columns = grid_columns(self.shape.classes)
        model, training = self.final_weights(), self.denoiser.training
        sampling = build_sampling(how, self.denoiser.schedule)
        images, _ = sampling.generate(model.eval(), self.shape, PICTURE_IMAGES // columns * columns)
        model.train(training)
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        save_grid(images, folder / f"step-{self.step:08d}.png", columns)
