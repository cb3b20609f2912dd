"""Gates: which steps count, as a pure function of (seed, step)."""

import pytest
import torch

from xhat import every
from xhat.objective.gates import after, always, both, randomly, reweighted


def open_steps(gate, steps=60, seed=0):
    return [step for step in range(steps) if gate(seed, step)]


def test_the_plain_gates():
    assert open_steps(always, 3) == [0, 1, 2]
    assert open_steps(every(4), 10) == [0, 4, 8]
    assert open_steps(every(1), 3) == [0, 1, 2]
    assert open_steps(after(7), 10) == [7, 8, 9]


def test_randomly_is_a_function_of_seed_and_step_alone():
    """Equal in any order and between calls, whatever the global generator did; another seed differs."""
    gate = randomly(0.3)
    forward = [gate(5, step) for step in range(50)]
    torch.manual_seed(123)
    torch.rand(10)
    state = torch.get_rng_state()
    assert [gate(5, step) for step in reversed(range(50))][::-1] == forward
    assert torch.equal(state, torch.get_rng_state())
    assert [randomly(0.3)(5, step) for step in range(50)] == forward
    assert [gate(6, step) for step in range(50)] != forward


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_randomly_opens_with_its_probability(p):
    n = 2000
    share = len(open_steps(randomly(p), n)) / n
    assert abs(share - p) <= 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("make", [lambda: every(0), lambda: every(-1), lambda: randomly(0.0), lambda: randomly(1.1)])
def test_meaningless_gates_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


@pytest.mark.parametrize("gate", [every(4), randomly(0.25)], ids=str)
def test_a_reweighted_gate_is_one_on_average(gate):
    values = [reweighted(gate)(3, step) for step in range(4000)]
    assert set(values) == {0.0, 4.0}
    assert abs(sum(values) / 4000 - 1) < 0.1


def test_both_multiplies_factors():
    gate = both(after(4), reweighted(every(2)))
    assert [gate(0, step) for step in range(8)] == [0, 0, 0, 0, 2, 0, 2, 0]
    assert both(lambda seed, step: True, lambda seed, step: step == 1)(0, 1) == 1


@pytest.mark.parametrize("gate", [always, after(3), reweighted(every(2))])
def test_a_gate_of_unknown_share_cannot_be_reweighted(gate):
    with pytest.raises(ValueError, match="reweighted takes"):
        reweighted(gate)
