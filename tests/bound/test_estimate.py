"""The estimate of the bound: unbiased, honest about its error, resumable."""

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import xhat
from oracles import Levels, ScaledX0
from xhat import estimate_bound, variational_bound
from xhat.bound.control import Control, cells, fit
from xhat.bound.density import LEAST_DRAWS, MOST_DRAWS, Pilot, pilot_draws, run_pilot
from xhat.bound.estimate import Progress
from xhat.bound.terms import ContinuousForm, form_of
from xhat.runs.progress_file import ProgressFile


def images(n, seed=0):
    """Blocks of a few levels: some images are mostly black, others are not."""
    own = torch.Generator().manual_seed(seed)
    ink = torch.rand(n, 1, 1, 1, generator=own)
    grey = torch.randint(0, 256, (n, 1, 4, 4), generator=own)
    level = torch.where(torch.rand(n, 1, 4, 4, generator=own) < ink, grey, 0)
    return level.double() * 2 / 255 - 1


def model(schedule, variance=xhat.variances.POSTERIOR):
    return xhat.Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V, variance=variance)


SCHEDULES = {
    "discrete": (lambda: xhat.Discrete.linear_beta(100, 1e-3, 0.2), None),
    "steps": (lambda: xhat.schedules.LinearLogSNR(-6, 9), 50),
    "continuous": (lambda: xhat.schedules.LinearLogSNR(-6, 9), math.inf),
}


@cache
def summed(name):
    """Full sums of 64 images, whose noise is that of a few steps, and a pilot on others."""
    make, steps = SCHEDULES[name]
    denoiser = model(make())
    times = 3 if steps == math.inf else 24
    full = [estimate_bound(denoiser, images(64), evaluations=None, steps=steps, seed=100 + k) for k in range(times)]
    pilot = run_pilot(form_of(denoiser.schedule, steps), denoiser, images(64, seed=1), None, draws=24)
    return denoiser, steps, torch.stack([f.per_image.bits_per_dim for f in full]), pilot


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("evaluations", "opposite"), [(1, False), (3, False), (3, True), (4, False), (4, True)])
def test_it_is_unbiased_for_the_sum_over_all_steps(name, evaluations, opposite):
    """Over repeated trials the mean misses the exact sum by less than its own error, however noises are spread."""
    denoiser, steps, exact, pilot = summed(name)
    trials = [
        estimate_bound(
            denoiser,
            images(64),
            images(8),
            evaluations=evaluations,
            steps=steps,
            seed=k,
            progress=Progress(replace(pilot, opposite=opposite)),
        ).per_image.bits_per_dim
        for k in range(30)
    ]
    difference = torch.stack(trials).mean(1) - exact.mean()
    error = math.hypot(float(difference.std()) / math.sqrt(30), float(exact.mean(1).std()) / math.sqrt(len(exact)))
    assert abs(float(difference.mean())) < 3 * error


@dataclass(frozen=True)
class Toy(ContinuousForm):
    """Parts that know one pixel of the noise, e: linear · e + quadratic · (e² - 1)/sqrt(2)."""

    linear: float = 0.0
    quadratic: float = 0.0

    def part(self, denoiser, prediction, x0, noise, index, t):
        e = noise[:, 0, 0, 0].double()
        return self.linear * e + self.quadratic * (e**2 - 1) / math.sqrt(2)


def toy(linear, quadratic):
    schedule = xhat.schedules.LinearLogSNR(-6, 9)
    form = Toy(schedule, 20, form_of(schedule, math.inf).decoder, linear, quadratic)
    return form, xhat.Denoiser(Zero(), schedule, xhat.V)


@pytest.mark.parametrize(("linear", "quadratic", "opposite"), [(1, 0, True), (1, 0.5, True), (1, 1, False), (0, 1, False)])
def test_the_pilot_finds_whether_opposite_noises_pay(linear, quadratic, opposite):
    form, denoiser = toy(linear, quadratic)
    assert run_pilot(form, denoiser, torch.ones(4, 1, 8, 8), None, draws=250).opposite == opposite


@dataclass(frozen=True)
class ImagesThenNoise(ContinuousForm):
    """Parts of variance 1: up to number 10 that of the image's sign, then that of a pixel's noise."""

    def part(self, denoiser, prediction, x0, noise, index, t):
        return torch.where(index <= 10, x0[:, 0, 0, 0].sign().double(), (noise[:, 0, 0, 0].double() ** 2 - 1) / math.sqrt(2))


@pytest.mark.parametrize(("evaluations", "ratio"), [(1, 1.0), (4, 1.98), (16, 3.75)])
def test_what_differs_between_images_counts_the_less_the_more_draws_there_are(evaluations, ratio):
    """sqrt(evaluations), but for a share of 1.6 % that 500 groups in a cell are shrunk by."""
    schedule = xhat.schedules.LinearLogSNR(-6, 9)
    form = ImagesThenNoise(schedule, 20, form_of(schedule, math.inf).decoder)
    signs = torch.tensor([-1.0, 1.0]).repeat(32).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    denoiser = xhat.Denoiser(Zero(), schedule, xhat.V)
    p = run_pilot(form, denoiser, signs, None, draws=2000, evaluations=evaluations).probability
    assert float(p[11:].mean() / p[:9].mean()) == pytest.approx(ratio, rel=0.08)


def in_parts(count, function, *, size):
    """Means and variances of a function of a normal number, or of its size, in `count` parts of equal probability."""
    steps = (torch.arange(40_000 * count, dtype=torch.float64) + 0.5) / (40_000 * count)
    value = function(torch.special.ndtri((1 + steps) / 2 if size else steps)).reshape(count, -1)
    return value.mean(1), value.var(1)


@pytest.mark.parametrize("evaluations", [1, 3, 4])
@pytest.mark.parametrize("opposite", [False, True])
def test_the_noises_change_the_variance_as_the_closed_form_says(evaluations, opposite, monkeypatch):
    """Spread over parts, a sum has the variances within the parts alone; opposite ones cancel what is linear, and count twice
    what is quadratic, in parts of the pairs' size; the last of an odd number is alone."""
    same = Pilot(torch.full((20,), 1 / 20, dtype=torch.float64), Control.none(20), opposite=opposite)
    for linear, function in ((1, lambda e: e), (0, lambda e: (e**2 - 1) / math.sqrt(2))):
        form, denoiser = toy(linear, 1 - linear)
        monkeypatch.setattr("xhat.bound.estimate.form_of", lambda *_, form=form: form)
        x0 = torch.ones(4000, 1, 4, 4)
        found = estimate_bound(denoiser, x0, x0[:1], evaluations=evaluations, rows=4096, progress=Progress(same))
        nats = found.per_image.diffusion * math.log(2) * 16
        pairs = -(-evaluations // 2)
        mean, variance = in_parts(pairs if opposite else evaluations, function, size=opposite)
        if not opposite:
            want = float(variance.sum())
        elif linear:
            want = float(evaluations % 2)  # a normal number if all it is paired with cancels
        elif evaluations % 2 == 0:
            want = 4 * float(variance.sum())
        else:  # a random part is the one that is not doubled
            want = float((4 - 3 / pairs) * variance.sum()) + float(mean.var(correction=0))
        want *= 20**2 / evaluations**2
        assert float(nats.var()) == pytest.approx(want, rel=0.15, abs=1e-8)
        neighbours = torch.corrcoef(torch.stack([nats[1:], nats[:-1]]))[0, 1] if want > 1e-9 else 0.0
        assert abs(float(neighbours)) < 5 / math.sqrt(4000)


def test_neighbouring_cells_help_where_draws_are_few():
    """Slopes, in units of the values' spread, that are nearly a line over the logarithm of the part, from 100 draws each."""
    middle = torch.arange(1, 13).double()
    cell = torch.arange(12).repeat_interleave(100)
    slope = (3 + middle.log()) / 10
    own = torch.Generator().manual_seed(0)
    error = []
    for _ in range(20):
        x, noise = torch.randn(2, 1200, dtype=torch.float64, generator=own)
        value = (1 + slope[cell] * x + noise) / middle[cell]
        features = torch.stack([torch.ones(1200), x], dim=1)
        found = [fit(value, cell, features, middle, weight) for weight in (1e-9, 100.0)]
        error.append([float(((f.coefficients[:, 1] * middle - slope) ** 2).mean()) for f in found])
        left = found[1].left * middle**2
        assert float(left.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 1200))  # of the noise
    alone, shrunk = torch.tensor(error).mean(0).tolist()
    assert alone == pytest.approx(1 / 100, rel=0.25)
    assert shrunk < 0.7 * alone


def test_a_pilot_costs_no_more_than_the_measurement_within_its_limits():
    assert pilot_draws(1000, 8) == LEAST_DRAWS
    assert pilot_draws(1000, 10**6) == MOST_DRAWS
    calls = 2 * len(cells(1000)) * 100
    assert pilot_draws(1000, calls) == 100


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_part_is_unbiased_too(name):
    make, steps = SCHEDULES[name]
    denoiser, x0, pilot = model(make()), images(128), images(64, seed=1)
    exact = [estimate_bound(denoiser, x0, evaluations=None, steps=steps, seed=100 + k) for k in range(2)]
    own = [estimate_bound(denoiser, x0, pilot, evaluations=4, steps=steps, seed=k, draws=24) for k in range(24)]
    for part in ("prior", "diffusion", "reconstruction"):
        values = torch.tensor([getattr(e, part) for e in own])
        a, b = (getattr(e.per_image, part) for e in exact)
        error = math.hypot(float(values.std()) / math.sqrt(24), float((a - b).std()) / 2 / math.sqrt(128))
        assert abs(float(values.mean() - ((a + b) / 2).mean())) < 3 * error + 1e-9, part
    total = sum(getattr(own[0], part) for part in ("prior", "diffusion", "reconstruction"))
    assert own[0].bits_per_dim == pytest.approx(total)
    inside = own[0].diffusion + (own[0].reconstruction if name == "discrete" else 0)
    assert sum(own[0].curve.bits_per_dim) == pytest.approx(inside)


def test_every_step_is_the_measured_bound():
    """`evaluations=None` and `variational_bound` are one sum with other noise; prior and pixels agree exactly."""
    schedule = xhat.Discrete.linear_beta(100, 1e-3, 0.2)
    x0 = images(32)
    a, b = estimate_bound(model(schedule), x0, evaluations=None), variational_bound(model(schedule), x0)
    assert a.network_evaluations_per_image == 100
    torch.testing.assert_close(a.per_image.prior, b.prior)
    difference = a.per_image.bits_per_dim - b.bits_per_dim
    assert abs(float(difference.mean())) < 3 * float(difference.std()) / math.sqrt(32)


def test_the_standard_error_covers_the_images_and_the_draws():
    """Repeated samples of images scatter as the standard error says."""
    schedule = xhat.schedules.LinearLogSNR(-6, 9)
    denoiser, pilot = model(schedule), images(64, seed=1)
    runs = [estimate_bound(denoiser, images(100, seed=10 + k), pilot, evaluations=2, seed=k, draws=16) for k in range(40)]
    scatter = float(torch.tensor([r.bits_per_dim for r in runs]).std())
    claimed = sum(r.bits_per_dim_se for r in runs) / 40
    assert scatter == pytest.approx(claimed, rel=0.35)  # the scatter of 40 runs is known to 11 %


def test_the_density_and_the_control_pay():
    """Within-image variance: far below uniform steps at the same cost."""
    schedule = xhat.Discrete.linear_beta(100, 1e-3, 0.2)
    denoiser, x0, pilot = model(schedule), images(64), images(64, seed=1)

    def spread(progress):
        own = [
            estimate_bound(denoiser, x0, pilot, evaluations=4, seed=k, progress=progress(k)).per_image.bits_per_dim
            for k in range(8)
        ]
        return float(torch.stack(own).var(0).mean())

    found = run_pilot(form_of(schedule), denoiser, pilot, None)
    uniform = Pilot(torch.full((100,), 0.01, dtype=torch.float64), type(found.control).none(100))
    plain = Pilot(found.probability, type(found.control).none(100))
    assert spread(lambda k: Progress(found)) < 0.7 * spread(lambda k: Progress(plain))
    assert spread(lambda k: Progress(plain)) < 0.2 * spread(lambda k: Progress(uniform))


def test_the_pilot_never_sees_the_images_and_no_step_starves():
    schedule = xhat.Discrete.linear_beta(100, 1e-3, 0.2)
    found = run_pilot(form_of(schedule), model(schedule), images(64, seed=1), None)
    assert float(found.probability.sum()) == pytest.approx(1)
    assert float(found.probability.min()) >= 0.01 / 100
    index, place, chance = found.choose(torch.linspace(0, 1 - 1e-9, 50_000, dtype=torch.float64))
    share = torch.bincount(index - 1, minlength=100) / 50_000
    torch.testing.assert_close(share.double(), found.probability, rtol=0, atol=1e-4)
    assert (place >= 0).all()
    assert (place < 1).all()
    torch.testing.assert_close(chance, found.probability[index - 1])


def test_cells_cover_every_part_once():
    for count in (1, 2, 9, 100, 1000, 4000):
        ends = cells(count)
        assert int(ends[-1]) == count
        assert (ends.diff() > 0).all()


def test_it_goes_on_where_it_stopped():
    """An estimate that was stopped after some batches ends with the same digits."""
    denoiser, x0, pilot = model(xhat.schedules.LinearLogSNR(-6, 9)), images(300), images(64, seed=1)
    whole = estimate_bound(denoiser, x0, pilot, rows=128)
    kept = []

    def interrupt(progress, se):
        kept.append(Progress(progress.pilot, progress.terms, progress.by_cell))
        if len(kept) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_bound(denoiser, x0, pilot, rows=128, report=interrupt)
    resumed = estimate_bound(denoiser, x0, pilot, rows=128, progress=kept[-1])
    assert resumed.bits_per_dim == whole.bits_per_dim
    assert resumed.bits_per_dim_se == whole.bits_per_dim_se
    assert resumed.curve == whole.curve


@pytest.mark.parametrize("evaluations", [3, 4])
def test_a_draw_belongs_to_its_image_not_to_the_batch(evaluations):
    """Also where a network call ends between the two of a pair."""
    denoiser, _, _, pilot = summed("steps")
    pilot = replace(pilot, opposite=True)

    def measured(rows):
        own = Progress(pilot)
        return estimate_bound(
            denoiser, images(48), images(8), steps=50, evaluations=evaluations, rows=rows, progress=own
        ).per_image.bits_per_dim

    for rows in (48, 7, 1):
        torch.testing.assert_close(measured(512), measured(rows), rtol=1e-9, atol=1e-9)


def test_an_interrupted_estimate_goes_on_from_its_file(tmp_path):
    denoiser, _, _, pilot = summed("steps")
    how = {"steps": 50, "rows": 64}
    whole = estimate_bound(denoiser, images(32), images(8), progress=Progress(replace(pilot, opposite=True)), **how)
    file = ProgressFile(tmp_path / "progress", [1])

    def interrupt(progress, se):
        file.write(progress)
        if len(progress.terms) > 8:
            raise KeyboardInterrupt

    own = Progress(replace(pilot, opposite=True))
    with pytest.raises(KeyboardInterrupt):
        estimate_bound(denoiser, images(32), images(8), progress=own, report=interrupt, **how)
    found = file.read(50, 32, pilot=True)
    assert len(found.terms) == 16
    resumed = estimate_bound(denoiser, images(32), images(8), progress=found, **how)
    assert (resumed.bits_per_dim, resumed.bits_per_dim_se, resumed.curve) == (
        whole.bits_per_dim,
        whole.bits_per_dim_se,
        whole.curve,
    )


@pytest.mark.parametrize("damage", ["yes", None, "pixel_slopes", "pixel_values"])
def test_a_pilot_that_cannot_be_is_not_trusted(damage, tmp_path):
    path = tmp_path / "progress"
    pilot = Pilot(torch.full((30,), 1 / 30, dtype=torch.float64), Control.none(30), 7, True)
    file = ProgressFile(path, [1])
    file.write(Progress(pilot, torch.ones(3, 3).double(), torch.ones(len(cells(30))).double()))
    assert file.read(30, 8, pilot=True).pilot.opposite
    with safe_open(path, framework="pt") as held:
        metadata, tensors = held.metadata(), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    if damage in tensors:
        tensors[damage] = torch.full((7,), math.nan, dtype=torch.float64)
    else:
        del metadata["opposite"]
        metadata |= {} if damage is None else {"opposite": damage}
    save_file(tensors, path, metadata=metadata)
    with pytest.warns(UserWarning, match="progress is damaged"):
        assert not len(file.read(30, 8, pilot=True).terms)


def test_a_precision_takes_as_many_images_as_the_pilots_spread_says():
    """About a quarter of all for twice the error; what is measured has no say in it."""
    denoiser, x0, pilot = model(xhat.schedules.LinearLogSNR(-6, 9)), images(2000), images(256, seed=1)
    whole = estimate_bound(denoiser, x0, pilot)
    some = estimate_bound(denoiser, x0, pilot, standard_error=2 * whole.bits_per_dim_se)
    assert 350 < some.images < 700
    assert some.bits_per_dim_se == pytest.approx(2 * whole.bits_per_dim_se, rel=0.2)
    others = estimate_bound(denoiser, x0.flip(0), pilot, standard_error=2 * whole.bits_per_dim_se)
    assert others.images == some.images
    low, high = some.limits
    assert low < whole.bits_per_dim < high


def test_an_interrupted_precision_goes_on_to_the_same_number_of_images():
    denoiser, x0, pilot = model(xhat.schedules.LinearLogSNR(-6, 9)), images(400), images(64, seed=1)
    wanted = estimate_bound(denoiser, x0, pilot, standard_error=16.0)
    kept = []

    def stop(now, error):
        kept.append(replace(now))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_bound(denoiser, x0, pilot, standard_error=16.0, report=stop, rows=64)
    again = estimate_bound(denoiser, x0, pilot, standard_error=16.0, progress=kept[0], rows=64)
    assert again.images == wanted.images < 400
    assert again.bits_per_dim == pytest.approx(wanted.bits_per_dim, rel=1e-9)
    finer = estimate_bound(denoiser, x0, pilot, standard_error=12.0, progress=replace(kept[0]), rows=64)
    assert finer.images > wanted.images
    assert estimate_bound(denoiser, x0, pilot, progress=replace(kept[0]), rows=64).images == 400


def test_without_a_precision_all_images_are_measured():
    assert estimate_bound(model(xhat.schedules.LinearLogSNR(-6, 9)), images(200), images(8), rows=512).images == 200


def test_a_precision_needs_pilot_images():
    with pytest.raises(ValueError, match="2 pilot images"):
        estimate_bound(model(xhat.schedules.LinearLogSNR(-6, 9)), images(20), images(1), standard_error=0.1)


class Zero(torch.nn.Module):
    def forward(self, z, t):
        return 0 * z


@pytest.mark.parametrize(
    "schedule",
    [
        xhat.Discrete.linear_beta(50).rescale_zero_terminal(),
        xhat.Cosine(-math.inf),
        xhat.Cosine(logsnr_max=math.inf),
        xhat.Flow(t_min=0),
    ],
    ids=["discrete", "no_signal", "no_noise", "flow"],
)
def test_the_curve_is_finite_at_both_ends_of_every_schedule(schedule):
    found = estimate_bound(xhat.Denoiser(Zero(), schedule, xhat.V), images(8), images(8, seed=1)).curve
    for values in (found.logsnr, found.logsnr_width, found.bits_per_dim):
        assert all(map(math.isfinite, values))
    assert max(map(abs, found.logsnr)) <= 20
    assert min(found.logsnr_width) >= 0


def test_conditions_follow_their_images():
    class Told(torch.nn.Module):
        def forward(self, z, t, label):
            return label.reshape(-1, 1, 1, 1) + 0 * z

    schedule = xhat.schedules.LinearLogSNR(-6, 9)
    denoiser = xhat.Denoiser(Told(), schedule, xhat.X0)
    values = torch.tensor([-1.0, 1.0, 51 / 127.5 - 1]).double()
    x0 = values.repeat(40).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    own = {"label": values.repeat(40)}
    right = estimate_bound(denoiser, x0, x0, cond=own, pilot_cond=own)
    assert right.diffusion == pytest.approx(0, abs=1e-9)  # the network is told the image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluations": 0}, "at least 1 evaluation"),
        ({"pilot": None}, "pilot images"),
        ({"draws": 1}, "at least 2 draws"),
        ({"x0": images(1)}, "at least 2 images"),
        ({"x0": images(4) + 0.001}, "8-bit"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1e10}, "at most 1,000,000 steps, got 1e\\+10: use inf for continuous time"),
        ({"steps": 1e30}, "use inf for continuous time"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"x0": images(4), "pilot": images(4)} | arguments
    with pytest.raises(ValueError, match=message):
        estimate_bound(model(xhat.schedules.LinearLogSNR(-6, 9)), **given)


def test_the_exact_denoiser_has_the_entropy_of_its_data():
    levels, chance = [0, 100, 255], torch.tensor([0.6, 0.15, 0.25], dtype=torch.float64)
    schedule = xhat.schedules.LinearLogSNR(-12, 14)
    denoiser = xhat.Denoiser(Levels(schedule, levels, chance), schedule, xhat.NOISE)
    own = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(chance, 600 * 16, replacement=True, generator=own).reshape(600, 1, 4, 4)
    x0 = torch.tensor(levels)[chosen].double() * 2 / 255 - 1
    found = estimate_bound(denoiser, x0[:500], x0[500:], steps=math.inf, evaluations=8)
    entropy = float(-(chance * chance.log2()).sum())
    assert abs(found.bits_per_dim - entropy) < 3 * found.bits_per_dim_se
    assert found.bits_per_dim_se < 0.03
