"""The denoising loss: norms by hand, any space, whatever the network predicts."""

import pytest
import torch

import xhat
from oracles import SCHEDULES, SHAPE, STEP_TARGETS, TARGETS, GaussianData, ScaledX0, exact
from xhat import FLOW, NOISE, X0, Denoiser, Denoising, Objective, Term, V, weightings
from xhat.losses.norms import absolute, euclidean, huber, pseudo_huber, scheduled_pseudo_huber, squared


def close(a, b, rtol=1e-6, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def images(rng):
    return GaussianData().sample(6, rng)


def on(schedule, target=V):
    schedule = SCHEDULES[schedule]()
    return Denoiser(ScaledX0(schedule, target), schedule, target)


ERROR = torch.tensor([[3.0, -4.0], [0.0, 0.5]], dtype=torch.float64).reshape(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("norm", "value"),
    [
        (squared, (9 + 16 + 0.25) / 4),
        (absolute, 7.5 / 4),
        (euclidean, 25.25**0.5),
        (huber(1.0), (2.5 + 3.5 + 0.125) / 4),
        (huber(3.5), (4.5 + 3.5 * (4 - 1.75) + 0.125) / 4),
    ],
    ids=["squared", "absolute", "euclidean", "huber1", "huber3.5"],
)
def test_norms_by_hand_and_their_gradients(norm, value):
    close(norm(ERROR), torch.tensor([value], dtype=torch.float64))
    both = torch.cat([ERROR, 2 * ERROR])
    assert norm(both).shape == (2,)
    close(norm(both)[0], norm(ERROR)[0])
    smooth = (both + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(norm, smooth)


@pytest.mark.parametrize(
    "norm",
    [squared, absolute, euclidean, huber(), pseudo_huber(0.3)],
    ids=["squared", "absolute", "euclidean", "huber", "pseudo_huber"],
)
@pytest.mark.trap(12)
def test_a_perfect_prediction_has_no_nan_gradient(norm):
    error = torch.zeros(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(error).sum(), error)
    close(grad, torch.zeros_like(error))


@pytest.mark.parametrize("space", [*TARGETS, *STEP_TARGETS], ids=lambda x: x.name)
@pytest.mark.parametrize("norm", [squared, euclidean], ids=["squared", "euclidean"])
def test_the_error_is_that_of_y_in_its_space(space, norm, images):
    """weight · norm(a (x0 - x0_hat) + b (noise - noise_hat)), from the draw alone."""
    denoiser = on("linear_beta")
    draw = Objective(denoiser, {"d": Term(Denoising())}).draw(images, step=1)
    p = draw.prediction
    expected = norm(space.of(denoiser.schedule, draw.t, images - p.x0, draw.noise - p.noise))
    close(Denoising(space, norm=norm)(denoiser, draw), expected)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "ve", "linear_beta"])
@pytest.mark.parametrize("space", [X0, NOISE, V, FLOW, xhat.targets.SCALED_NOISE], ids=lambda x: x.name)
@pytest.mark.trap(1)
@pytest.mark.trap(2)
def test_squared_errors_of_all_spaces_are_the_x0_error_times_the_gain(schedule, space, images):
    denoiser = on(schedule)
    draw = Objective(denoiser, {"d": Term(Denoising())}).draw(images, step=1)
    x0_error = squared(images - draw.prediction.x0)
    gain = space.gain(denoiser.schedule, draw.t.double())
    close(Denoising(space)(denoiser, draw), gain * x0_error, rtol=2e-4)  # float32 times: alpha, sigma at the ends


def test_the_weight_multiplies_each_image_by_its_own_logsnr(images):
    denoiser = on("cosine")
    draw = Objective(denoiser, {"d": Term(Denoising())}).draw(images, step=1)
    snr = denoiser.schedule.logsnr(draw.t).exp().double()
    plain = Denoising(X0)(denoiser, draw)
    close(Denoising(X0, weightings.min_snr(5))(denoiser, draw), snr.clamp(max=5) * plain)


@pytest.mark.trap(3)
def test_debiased_noise_loss_equals_its_v_form(images):
    denoiser = on("cosine")
    draw = Objective(denoiser, {"d": Term(Denoising())}).draw(images, step=1)
    snr = denoiser.schedule.logsnr(draw.t).exp().double()
    in_noise = Denoising(NOISE, weightings.debiased)(denoiser, draw)
    close(in_noise, snr.sqrt() / (snr + 1) * Denoising(V)(denoiser, draw), rtol=2e-4)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "ve", "linear_beta", "discrete_rescaled"])
def test_the_exact_denoiser_minimizes_every_weighted_squared_loss(schedule, rng):
    """x0_hat + c has a larger loss for either sign of c, by about c² (the first order vanishes), in each space."""
    data, on_schedule = GaussianData(), SCHEDULES[schedule]()
    objective = Objective(exact(data, on_schedule), {"d": Term(Denoising(X0, weightings.min_snr(5)))})
    draw = objective.draw(data.sample(20_000, rng), step=0)
    error = (draw.x0 - draw.prediction.x0) * weightings.min_snr(5)(on_schedule.logsnr(draw.t), on_schedule).reshape(-1, 1, 1, 1)
    for direction in (torch.ones_like(error), draw.z, draw.prediction.x0**2):
        product = (error * direction).flatten(1).mean(1)
        assert abs(product.mean()) < 5 * product.std() / len(product) ** 0.5


@pytest.mark.trap(14)
def test_there_is_no_clamp(images):
    """The loss of a network that answers x0_hat = 100 is 100² to leading order, with the full gradient."""
    schedule = SCHEDULES["cosine"]()
    denoiser = Denoiser(ScaledX0(schedule, V, scale=0.0, shift=100.0), schedule, V)
    loss = Objective(denoiser, {"d": Term(Denoising(X0))})(images)["loss"]
    close(loss, (100 - images).square().mean(), rtol=1e-5)


def test_pseudo_huber_is_its_formula_and_keeps_its_digits(rng):
    error = torch.randn(3, 1, 4, 4, generator=rng, dtype=torch.float64)
    want = (2 * 0.3 * ((error**2 + 0.09).sqrt() - 0.3)).flatten(1).mean(1)
    torch.testing.assert_close(pseudo_huber(0.3)(error), want)
    small = torch.full((1, 1, 2, 2), 1e-6)
    torch.testing.assert_close(pseudo_huber(1.0)(small), torch.tensor([1e-12]), rtol=1e-5, atol=0)
    far = torch.full((1, 1, 2, 2), 1e4)
    torch.testing.assert_close(pseudo_huber(0.5)(far), torch.tensor([1e4]), rtol=1e-3, atol=0)


def test_the_scheduled_one_falls_from_1_to_its_lowest(rng):
    """delta = lowest^t, the exponential schedule of Khrapov et al. 2024."""
    norm, error = scheduled_pseudo_huber(0.1), torch.randn(3, 1, 4, 4, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = norm.at(t)(error)
    for i, delta in enumerate((1.0, 0.1**0.5, 0.1)):
        torch.testing.assert_close(found[i : i + 1], pseudo_huber(delta)(error[i : i + 1]))
    with pytest.raises(ValueError, match="at most 1"):
        scheduled_pseudo_huber(2.0)
    with pytest.raises(ValueError, match="above 0"):
        pseudo_huber(0.0)


def test_a_denoising_loss_takes_it_with_a_mask_and_without(rng):
    class Zero(torch.nn.Module):
        def forward(self, z, t):
            return 0 * z

    denoiser = xhat.Denoiser(Zero(), xhat.Flow(), xhat.FLOW)
    x0 = torch.randn(4, 1, 4, 4, generator=rng)
    mask = torch.zeros(4, 1, 4, 4)
    mask[..., :2] = 1
    norm = scheduled_pseudo_huber(0.2)
    for where in (None, xhat.masked("mask")):
        loss = xhat.Denoising(xhat.FLOW, norm=norm, where=where)
        objective = xhat.Objective(denoiser, {"own": xhat.Term(loss)})
        draw = objective.draw(x0, step=0, extra={"mask": mask})
        error = x0 - draw.noise
        want = norm.at(draw.t)(error) if where is None else norm.at(draw.t)(error, mask)
        torch.testing.assert_close(objective.per_image("own", draw), want)
