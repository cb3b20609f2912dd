"""Counted randomness: sample k of a stream is the same however the samples are divided."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xhat.rng import BLOCK, generator, normal, stratified


@given(cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=5), total=st.integers(1, 3 * BLOCK))
@pytest.mark.trap(16)
def test_any_division_gives_the_one_call_draw(cuts, total):
    whole = normal((total, 2, 3), 7, "noise", 11)
    edges = sorted({0, total, *(c for c in cuts if c < total)})
    parts = [normal((b - a, 2, 3), 7, "noise", 11, first=a) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("first", [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 3])
@pytest.mark.parametrize("count", [0, 1, BLOCK, BLOCK + 1])
def test_samples_far_into_the_stream(first, count):
    whole = normal((first + count, 2), "s", 0)
    assert torch.equal(normal((count, 2), "s", 0, first=first), whole[first:])


@pytest.mark.parametrize("other", [(8, "noise", 3), (7, "times", 3), (7, "noise", 4)])
def test_any_part_of_the_key_changes_the_draw(other):
    a, b = normal((4, 16), 7, "noise", 3), normal((4, 16), *other)
    assert (a != b).all()


@pytest.mark.trap(16)
def test_samples_are_standard_normal_and_independent():
    """No two samples share noise, in blocks or over steps (a repeated block would correlate fully)."""
    x = torch.cat([normal((2 * BLOCK, 64), 0, "noise", step) for step in range(5)])
    assert stats.kstest(x.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    correlation = torch.corrcoef(x) - torch.eye(len(x))
    assert correlation.abs().max().item() < 6 / 64**0.5  # 6 standard errors over 51 040 pairs


@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("per", [1, 3, 4, 8])
def test_a_row_is_standard_normal_and_spread_over_the_parts(per, opposite):
    """Of each number one sample in each part; or pairs of opposite ones, one size in each part."""
    x = stratified((5000 * per, 4), 0, "rows", first=0, per=per, opposite=opposite)
    x = x.reshape(5000, per, 4).movedim(1, 0).double()
    for row in x:
        assert stats.kstest(row.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    place = torch.special.ndtr(x)
    if opposite:
        assert torch.equal(x[1::2], -x[0::2][: per // 2])
        x, place = x[0::2], 2 * torch.special.ndtr(x[0::2].abs()) - 1
    part = (place * len(place)).floor().sort(0).values
    assert torch.equal(part, torch.arange(len(place)).double().reshape(-1, 1, 1).expand_as(part))
    assert abs(float((x[0, :, 0] * x[0, :, 1]).mean())) < 5 / 5000**0.5
    assert abs(float((x[0, :-1] * x[0, 1:]).mean())) < 5 / 20_000**0.5  # rows are independent


def test_neighbours_of_a_row_lie_far_apart():
    """On average over the numbers' own place in their parts: half of all parts from the first to the second."""
    x = torch.special.ndtr(stratified((8000, 16), 0, first=0, per=8).double()).reshape(1000, 8, 16)
    steps = (x.diff(dim=1) % 1).mean((0, 2))
    assert steps[0] == pytest.approx(0.5, abs=0.01)
    assert (torch.minimum(steps, 1 - steps) > 0.2).all()


@given(cuts=st.lists(st.integers(0, 2 * BLOCK), max_size=5), per=st.integers(1, 5), start=st.integers(0, 2 * BLOCK))
@pytest.mark.parametrize("opposite", [False, True])
def test_any_division_gives_the_one_call_rows(opposite, cuts, per, start):
    how = {"per": per, "opposite": opposite}
    whole = stratified((3 * BLOCK, 2), 7, "noise", first=0, **how)[start:]
    edges = sorted({start, 3 * BLOCK, *(start + c for c in cuts if start + c < 3 * BLOCK)})
    parts = [stratified((b - a, 2), 7, "noise", first=a, **how) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


def test_generators_are_fresh_and_leave_the_global_one_alone():
    state = torch.get_rng_state()
    a, b = (torch.rand(3, generator=generator(1, "x", 2)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


def test_key_parts_do_not_run_together():
    """(1, 23) and (12, 3) are different keys."""
    assert generator(1, 23).initial_seed() != generator(12, 3).initial_seed()
    assert generator("a", "b").initial_seed() != generator("ab").initial_seed()


def test_the_stream_is_pinned():
    """A checkpoint resumed with a later version of the library must see the same noise."""
    assert generator(0, "noise", 0, 0).initial_seed() == 4_063_383_840_384_102_632
