"""Counted randomness: sample k of a stream is the same however the samples are divided."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xhat.rng import BLOCK, generator, normal, paired


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


@pytest.mark.parametrize("correlation", [-1.0, -0.3])
@pytest.mark.parametrize("per", [3, 4])
def test_pairs_are_standard_normal_and_correlate_as_told(per, correlation):
    """Samples 1 and 2 of each row, 3 and 4; nothing else, the last of an odd row and the next row's first in particular."""
    x = paired((5000 * per, 4), 0, "pairs", first=0, per=per, correlation=correlation)
    x = x.reshape(5000, per, 4).movedim(1, 0).flatten(1).double()
    for row in x:
        assert stats.kstest(row.numpy(), stats.norm.cdf).pvalue > 1e-3
    want = torch.eye(per).double()
    for first in range(0, per - 1, 2):
        want[first, first + 1] = want[first + 1, first] = correlation
    torch.testing.assert_close(torch.corrcoef(x), want, rtol=0, atol=5 / 20_000**0.5)
    assert abs(float((x[-1, :-4] * x[0, 4:]).mean())) < 5 / 20_000**0.5
    if correlation == -1:
        assert torch.equal(x[1], -x[0])


@given(cuts=st.lists(st.integers(0, 2 * BLOCK), max_size=5), per=st.integers(1, 5), start=st.integers(0, 2 * BLOCK))
def test_any_division_gives_the_one_call_pairs(cuts, per, start):
    how = {"per": per, "correlation": -0.6}
    whole = paired((3 * BLOCK, 2), 7, "noise", first=0, **how)[start:]
    edges = sorted({start, 3 * BLOCK, *(start + c for c in cuts if start + c < 3 * BLOCK)})
    parts = [paired((b - a, 2), 7, "noise", first=a, **how) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


def test_without_a_correlation_or_a_neighbour_pairs_are_the_plain_draw():
    plain = normal((40, 2), 7, first=3)
    assert torch.equal(paired((40, 2), 7, first=3, per=4, correlation=0.0), plain)
    assert torch.equal(paired((40, 2), 7, first=3, per=1, correlation=-1.0), plain)


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
