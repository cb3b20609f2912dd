"""What lambda should be: closed forms, gradients put together by hand, state."""

import math

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, SHAPE, Constant
from xhat import X0, Denoiser, Denoising, ImageLoss, Objective, Shard, Term, every
from xhat.diffusion.weightings import between, high_snr
from xhat.objective.gates import reweighted
from xhat.objective.multipliers import ConflictFree, DualAscent, GradientRatio

ALL = between(-math.inf, math.inf)


def close(a, b, rtol=1e-9, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def bright(images):
    """The mean pixel: its gradient is the same for every image."""
    return images.flatten(1).mean(1)


def make(weight, penalty=bright, where=ALL, when=None, output=0.5, base_weight=1.0):
    """X0 network of one learned image; base E‖x0 - output‖²/pixels, and a penalty of the output."""
    schedule = SCHEDULES["cosine"]()
    net = Constant(torch.full((1, *SHAPE), output, dtype=torch.float64))
    image = Term(ImageLoss(penalty, weighting=where), weight, **({"when": when} if when else {}))
    objective = Objective(Denoiser(net, schedule, X0), {"base": Term(Denoising(space=X0), base_weight), "image": image}, seed=3)
    return objective.train(), net


def data(rows=8, value=0.0):
    return torch.full((rows, *SHAPE), value, dtype=torch.float64)


class TestDualAscent:
    def test_it_finds_the_lagrange_multiplier(self):
        """min mean (0.5 - y)² subject to mean y <= 0.2: y = 0.2, and lambda = -d base/dy = 2 (0.5 - 0.2)."""
        objective, net = make(DualAscent(limit=0.2, rate=0.02))
        x0 = data(value=0.5)
        optimizer = torch.optim.SGD([net.output], lr=0.1)
        for step in range(1500):
            optimizer.zero_grad()
            values = objective(x0, step=step)
            values["loss"].backward()
            optimizer.step()
        close(net.output.mean(), 0.2, rtol=1e-3)
        close(values["image.lambda"], 2 * 0.3, rtol=1e-2)

    def test_a_limit_that_holds_by_itself_costs_nothing(self):
        objective, _ = make(DualAscent(limit=0.9))
        for step in range(5):
            values = objective(data(), step=step)
        assert float(values["image.lambda"]) == 0
        close(values["loss"], values["base"])

    def test_the_update_by_hand(self):
        multiplier = DualAscent(limit=-0.5, rate=0.1)  # a reward: at least 0.5
        for mean in (-0.4, -0.3, -0.9):
            multiplier.observe(torch.tensor(mean), torch.tensor(1.0))
        price = max(0.0, 0.1 * 0.2 + 0.1 * 0.4 - 0.1 * 0.8)
        close(multiplier(), price / 0.5, rtol=1e-6)

    def test_the_mean_is_weighted_as_the_term_is(self):
        """sum(w p)/sum(w): a constant penalty is observed as itself, whatever the gate's weights."""
        objective, _ = make(DualAscent(limit=10.0), where=high_snr(0.0))
        objective(data())
        close(objective.multipliers["image"].mean, 0.5)

    def test_lambda_makes_up_for_a_weight_that_leaves_few_levels(self):
        """lambda E[w] is the same for a gate that is a tenth everywhere as for none."""
        plain, _ = make(DualAscent(limit=0.1, rate=0.1))
        gated, _ = make(DualAscent(limit=0.1, rate=0.1), where=lambda logsnr, schedule: torch.full_like(logsnr, 0.1))
        plain(data()), gated(data())
        close(gated.multipliers["image"]() * 0.1, plain.multipliers["image"](), rtol=1e-6)

    def test_a_nan_is_not_learned(self):
        objective, _ = make(DualAscent(limit=0.1), penalty=lambda x: bright(x) * torch.nan)
        objective(data())
        assert float(objective.multipliers["image"].price) == 0

    def test_no_image_in_the_range_is_no_observation(self):
        objective, _ = make(DualAscent(limit=10.0), where=between(900, 1000))
        objective(data())
        assert bool(objective.multipliers["image"].mean.isnan())

    def test_micro_batches_are_one_observation(self):
        whole, _ = make(DualAscent(limit=0.1, rate=0.1), penalty=lambda x: x.square().flatten(1).mean(1))
        parts, _ = make(DualAscent(limit=0.1, rate=0.1), penalty=lambda x: x.square().flatten(1).mean(1))
        whole(data())
        for first in (0, 4):
            parts(data(4), shard=Shard(first, 8))
            assert (float(parts.multipliers["image"].price) > 0) == (first == 4)
        close(parts.multipliers["image"].price, whole.multipliers["image"].price)

    def test_nothing_is_learned_in_evaluation(self):
        objective, _ = make(DualAscent(limit=0.1))
        objective.eval()(data())
        assert float(objective.multipliers["image"].price) == 0

    def test_its_state_is_saved_with_the_objective(self):
        first, _ = make(DualAscent(limit=0.1))
        for step in range(3):
            first(data(), step=step)
        second, _ = make(DualAscent(limit=0.1))
        second.load_state_dict(first.state_dict())
        close(second(data(), step=3)["image.lambda"], first(data(), step=3)["image.lambda"])
        assert float(second.multipliers["image"].price) > 0

    def test_a_limit_out_of_reach_is_said_once(self):
        objective, _ = make(DualAscent(limit=0.1, patience=5))
        for step in range(5):
            objective(data(), step=step)
        with pytest.warns(UserWarning, match=r'term "image": the mean penalty is 0.5 and for 5 steps .* limit 0.1'):
            objective(data(), step=5)
        for step in range(6, 20):
            objective(data(), step=step)  # a warning would be an error

    def test_a_resumed_training_says_it_when_it_would_have_been_said_and_not_again(self):
        first, _ = make(DualAscent(limit=0.1, patience=5))
        for step in range(3):
            first(data(), step=step)
        second, _ = make(DualAscent(limit=0.1, patience=5))
        second.load_state_dict(first.state_dict())
        for step in range(3, 5):
            second(data(), step=step)
        with pytest.warns(UserWarning, match="for 5 steps"):
            second(data(), step=5)
        third, _ = make(DualAscent(limit=0.1, patience=5))
        third.load_state_dict(second.state_dict())
        for step in range(6, 30):
            third(data(), step=step)  # a warning would be an error

    def test_progress_is_not_complained_about(self):
        multiplier = DualAscent(limit=0.1, patience=5)
        for step in range(200):
            multiplier.observe(torch.tensor(max(0.05, 1.0 - 0.02 * step)), torch.tensor(1.0))
            assert multiplier.warning_message() is None

    @pytest.mark.parametrize("build", [lambda: DualAscent(0.0), lambda: DualAscent(math.nan), lambda: DualAscent(1.0, rate=0)])
    def test_meaningless_ones_are_refused(self, build):
        with pytest.raises(ValueError, match="DualAscent needs"):
            build()


def gradients(objective, x0, step=0):
    """(d base, d image, d loss) with respect to the learned image, flat."""
    output = objective.denoiser.net.output
    values, draw = objective(x0, step=step), objective.draw(x0, step=step)
    losses = [*(objective.per_image(name, draw).mean() for name in ("base", "image")), values["loss"]]
    return *(torch.autograd.grad(loss, output, retain_graph=True)[0].flatten() for loss in losses), values


class TestGradientRatio:
    def test_the_terms_gradient_is_the_set_share_of_the_bases(self):
        objective, _ = make(GradientRatio(0.1, every=1, smoothing=0), base_weight=3.0)
        base, image, loss, values = gradients(objective, data())
        close((values["image.lambda"] * image).norm() / (3 * base).norm(), 0.1)
        close(loss, 3 * base + values["image.lambda"] * image)

    def test_half_precision_of_the_network_does_not_round_it(self):
        """Under autocast products of float32 vectors are bf16, which has no number between 99.5 and 100."""
        found = []
        for enabled in (False, True):
            objective, net = make(GradientRatio(share=0.317, smoothing=0.0))
            net.float()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(objective(data().float(), step=0)["image.lambda"])
        close(found[1], found[0], rtol=1e-6)

    def test_it_is_measured_at_its_interval_and_at_first(self):
        objective, net = make(GradientRatio(0.1, every=4, smoothing=0))
        first = objective(data(), step=2)["image.lambda"]
        with torch.no_grad():
            net.output.mul_(2)  # doubles the gradient of the base
        close(objective(data(), step=3)["image.lambda"], first)
        close(objective(data(), step=4)["image.lambda"], 2 * first)

    def test_smoothing_is_in_log_scale(self):
        objective, net = make(GradientRatio(0.1, every=1, smoothing=0.75))
        first = objective(data(), step=0)["image.lambda"]
        with torch.no_grad():
            net.output.mul_(16)
        close(objective(data(), step=1)["image.lambda"], 2 * first)

    def test_gates_scale_it(self):
        objective, _ = make(GradientRatio(0.1, every=1, smoothing=0), when=lambda seed, step: 4.0)
        base, image, loss, values = gradients(objective, data())
        close(loss, base + 4 * values["image.lambda"] * image)

    def test_micro_batches_share_the_first_ones_measurement(self):
        objective, _ = make(GradientRatio(0.1, every=1, smoothing=0))
        first = objective(data(4), shard=Shard(0, 8))["image.lambda"]
        close(objective(data(4, value=3.0), shard=Shard(4, 8))["image.lambda"], first)
        assert float(objective(data(4, value=3.0), shard=Shard(0, 8))["image.lambda"] / first) > 2

    def test_a_term_without_gradient_changes_nothing(self):
        objective, _ = make(GradientRatio(0.1), penalty=lambda x: 0 * bright(x))
        values = objective(data())
        close(values["loss"], values["base"])
        assert float(values["image.lambda"]) == 0

    def test_it_needs_a_base(self):
        denoiser = Denoiser(Constant(data(1)), SCHEDULES["cosine"](), X0)
        with pytest.raises(ValueError, match="compare with a base term"):
            Objective(denoiser, {"i": Term(ImageLoss(bright), GradientRatio(0.1))})


class TestConflictFree:
    def pcgrad(self, base, term):
        """Yu et al. 2020, algorithm 1, for two losses."""
        if base @ term >= 0:
            return base + term
        first = base - (base @ term) / (term @ term) * term
        second = term - (base @ term) / (base @ base) * base
        return first + second

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    @pytest.mark.parametrize("weight", [1.0, 0.2])
    def test_the_gradient_is_pcgrads(self, sign, weight, rng):
        """Base pulls towards 0, the penalty weighs one column: they agree (+) or not (-)."""
        columns = torch.tensor([[1.0, 0.2], [0.5, 0.1]], dtype=torch.float64)
        objective, _ = make(ConflictFree(weight), penalty=lambda x: sign * (columns * x).flatten(1).sum(1))
        base, image, loss, _ = gradients(objective, data())
        assert float(base @ image) * sign > 0
        close(loss, self.pcgrad(base, weight * image))
        assert float(loss @ base) >= -1e-12
        assert float(loss @ image) >= -1e-12

    def test_a_reweighted_gate_leaves_no_conflict(self):
        """The gradient that counts is four times the term's: PCGrad of that one, so that the base does not rise."""
        columns = torch.tensor([[1.0, 0.2], [0.5, 0.1]], dtype=torch.float64)
        objective, _ = make(ConflictFree(0.5), penalty=lambda x: -(columns * x).flatten(1).sum(1), when=reweighted(every(4)))
        base, image, loss, _ = gradients(objective, data())
        close(loss, self.pcgrad(base, 4 * 0.5 * image))
        assert float(loss @ base) >= -1e-12

    def test_opposite_gradients_cancel(self):
        objective, _ = make(ConflictFree(1.0), penalty=lambda x: -bright(x))
        *_, loss, _ = gradients(objective, data())
        close(loss, torch.zeros(4), atol=1e-12)

    def test_it_works_beside_numbers_and_gates(self):
        objective, _ = make(ConflictFree(1.0), penalty=lambda x: -bright(x), when=every(2), base_weight=2.0)
        values = objective(data(), step=1)
        close(values["loss"], 2 * values["base"])


def test_flat_gradient_of_a_chain_can_be_taken_twice():
    """A checkpointed chain under GradientRatio: measured, then differentiated again."""
    from xhat import FullChain
    from xhat.sampling.differentiate import AllSteps

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, z, t):
            return torch.tanh(self.w * z)

    denoiser = Denoiser(Line(), SCHEDULES["flow"](), X0)
    loss = ImageLoss(lambda x: x.square().flatten(1).mean(1), FullChain(steps=3, differentiate=AllSteps()))
    terms = {"base": Term(Denoising(space=X0)), "image": Term(loss, GradientRatio(0.5, every=1, smoothing=0))}
    objective = Objective(denoiser, terms).train()
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, draw = objective(x0, step=0), objective.draw(x0, step=0)
    each = [objective.per_image(name, draw).mean() for name in ("base", "image")]
    base, image = (torch.autograd.grad(value, denoiser.net.w, retain_graph=True)[0] for value in each)
    close((values["image.lambda"] * image).abs() / base.abs(), 0.5, rtol=1e-6)
    values["loss"].backward()
    close(denoiser.net.w.grad, base + values["image.lambda"] * image, rtol=1e-6)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("known", [True, False])
def test_what_a_gpu_is_not_asked_for_is_learned_alike(known):
    """On the CPU nothing is observed where there was nothing to see; elsewhere it is put back."""
    found = []
    for kind in (torch.Tensor, Elsewhere):
        multiplier = DualAscent(0.5, rate=0.1)
        multiplier.observe(torch.tensor(0.7), torch.tensor(1.0))
        mean = torch.tensor(0.9 if known else float("nan"))
        multiplier.learn(mean, torch.tensor(0.4), torch.tensor(known).as_subclass(kind))
        found.append(multiplier.state_dict())
    assert found[0].keys() == found[1].keys() == {"price", "scale", "mean", "best", "idle"}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0)
    assert (float(found[0]["idle"]) == 1) == known
