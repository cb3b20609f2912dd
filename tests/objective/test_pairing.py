"""Which noise an image is paired with."""

import itertools

import pytest
import torch

from oracles import SHAPE, ScaledX0
from xhat import Cosine, Denoiser, Denoising, Objective, Shard, Term, V, VariationalBound
from xhat.objective.pairing import Immiscible


def cost(x0, noise):
    return float((x0 - noise).square().sum())


def test_no_other_assignment_is_nearer(rng):
    """All 720 of six samples."""
    x0, noise = (torch.randn(6, *SHAPE, generator=rng) for _ in range(2))
    found = cost(x0, Immiscible(6)(x0, noise))
    assert found == pytest.approx(min(cost(x0, noise[list(order)]) for order in itertools.permutations(range(6))), rel=1e-6)


def test_the_noises_of_a_group_stay_its_own(rng):
    x0, noise = (torch.randn(10, *SHAPE, generator=rng) for _ in range(2))
    paired = Immiscible(4)(x0, noise)
    for own in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert torch.equal(paired[own].flatten(1).sort(0).values, noise[own].flatten(1).sort(0).values)
    assert not torch.equal(paired, noise)


def objective(pairing):
    schedule = Cosine()
    return Objective(Denoiser(ScaledX0(schedule, V), schedule, V), {"d": Term(Denoising())}, seed=3, pairing=pairing)


def test_all_that_an_objective_makes_of_a_draw_sees_it(rng):
    x0 = torch.randn(8, *SHAPE, generator=rng).double()
    plain, paired = objective(None).draw(x0, step=5), objective(Immiscible(4)).draw(x0, step=5)
    assert torch.equal(paired.noise, Immiscible(4)(x0, plain.noise))
    assert torch.equal(paired.t, plain.t)
    schedule = Cosine()
    alpha, sigma = (f(paired.t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    torch.testing.assert_close(paired.z, alpha * x0 + sigma * paired.noise)
    assert "pairing" in objective(Immiscible(4)).described()
    assert "pairing" not in objective(None).described()


def test_a_bound_with_paired_noise_is_noted():
    schedule = Cosine()
    with pytest.warns(UserWarning, match='term "b" is no bound of their likelihood'):
        Objective(Denoiser(ScaledX0(schedule, V), schedule, V), {"b": Term(VariationalBound())}, pairing=Immiscible(4))


def test_parts_of_whole_groups_are_paired_as_the_whole(rng):
    x0 = torch.randn(12, *SHAPE, generator=rng).double()
    own = objective(Immiscible(4))
    whole = own.draw(x0, step=1, shard=Shard(0, 12)).noise
    part = own.draw(x0[8:], step=1, shard=Shard(8, 12)).noise
    assert torch.equal(part, whole[8:])


def test_a_config_names_it(tmp_path, digits):
    from helpers import TINY, xhat

    run = tmp_path / "run"
    words = ("--data", digits, "--max_steps", 2, "--pairing", "immiscible(8)")
    assert xhat("train", "mnist", "--run", run, *TINY, *words)[0] == 0
    assert "pairing: immiscible(8)" in (run / "config.yaml").read_text()


def test_what_cannot_be_is_refused(tmp_path, digits, capsys):
    from helpers import TINY, xhat

    with pytest.raises(ValueError, match="2 or more"):
        Immiscible(1)
    words = ("--data", digits, "--max_steps", 2, "--pairing", "immisible")
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", *TINY, *words, capsys=capsys)
    assert (code, "did you mean immiscible" in err) == (2, True), err
