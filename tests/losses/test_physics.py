"""PDE residuals: manufactured solutions, order of convergence, conservation, finite differences, a recovered solution."""

import math

import numpy as np
import pytest
import sympy
import torch
import torch.nn.functional as F

from xhat.losses.penalties import masked_mean
from xhat.losses.penalties.physics import darcy, darcy_residual, poisson, poisson_residual, units_between


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


X, Y = sympy.symbols("x y")
PRESSURE = sympy.sin(2 * X) * sympy.cos(3 * Y) + X * Y**2
PERMEABILITY = sympy.exp(X - Y / 2) + X * Y


def on_grid(expression, n):
    """An expression in x (down) and y (across) on n+1 by n/2+1 points of spacing 1/n, (1, H, W)."""
    x, y = torch.meshgrid(torch.arange(n + 1.0).double() / n, torch.arange(n // 2 + 1.0).double() / n, indexing="ij")
    values = sympy.lambdify((X, Y), expression, "numpy")(x.numpy(), y.numpy())
    return torch.from_numpy(np.broadcast_to(values, x.shape).copy())[None]


def darcy_source(K, p):
    return -sum(sympy.diff(K * sympy.diff(p, v), v) for v in (X, Y))


def order(residual_at):
    """log2 of the ratio of residuals when the spacing is halved."""
    coarse, fine = (residual_at(n).square().mean().sqrt() for n in (32, 64))
    return float((coarse / fine).log2())


def test_poisson_by_hand():
    u = torch.tensor([[0.0, 1.0, 0.0], [2.0, 5.0, 3.0], [0.0, 4.0, 0.0]]).reshape(1, 1, 3, 3)
    # neighbours 10, 4·5 = 20: -(10 - 20)/0.5² = 40
    close(poisson(0.0, 0.5)(u), torch.tensor([40.0**2]))
    close(poisson(37.0, 0.5)(u), torch.tensor([3.0**2]))
    close(poisson(torch.full((3, 3), 37.0), 0.5)(torch.cat([u, 2 * u])), torch.tensor([3.0**2, 43.0**2]))


def test_darcy_by_hand():
    K = torch.tensor([[9.0, 1.0, 9.0], [3.0, 5.0, 7.0], [9.0, 11.0, 9.0]])
    p = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 4.0], [0.0, 8.0, 0.0]])
    # half points: up 3, down 8, left 4, right 6; flux in 3·1 + 8·8 + 4·2 + 6·4 = 99; spacing 2
    close(darcy(0.0, 2.0)(torch.stack([K, p])[None]), torch.tensor([(99 / 4) ** 2]))


def test_poisson_is_exact_for_quadratics():
    u = on_grid(X**2 - 3 * X * Y + Y**2 / 2 + X - 1, 8)
    assert poisson(-3.0, 1 / 8)(u[None]).max() < 1e-20


def test_poisson_converges_with_order_two():
    source = -sum(sympy.diff(PRESSURE, v, 2) for v in (X, Y))
    found = order(lambda n: poisson_residual(on_grid(PRESSURE, n), on_grid(source, n)[0], 1 / n))
    assert found == pytest.approx(2, abs=0.1)


def test_darcy_converges_with_order_two():
    source = darcy_source(PERMEABILITY, PRESSURE)
    found = order(
        lambda n: darcy_residual(on_grid(PERMEABILITY, n), on_grid(PRESSURE, n), on_grid(source, n)[0], 1 / n),
    )
    assert found == pytest.approx(2, abs=0.1)


def test_the_penalty_is_the_mean_squared_residual():
    K, p, source = (on_grid(e, 16) for e in (PERMEABILITY, PRESSURE, darcy_source(PERMEABILITY, PRESSURE)))
    residual = darcy_residual(K, p, source[0], 1 / 16)
    close(darcy(source[0], 1 / 16)(torch.stack([K, p], 1)), residual.square().mean((1, 2)))
    close(poisson(source[0], 1 / 16)(torch.stack([p, K], 1)), poisson_residual(p, source[0], 1 / 16).square().mean((1, 2)))


def test_darcy_conserves_mass(rng):
    """On any fields, rough ones too, the interior's sum of sources is the flux through its outer faces."""
    K, p = torch.rand(2, 1, 7, 5, dtype=torch.float64, generator=rng) + 0.1
    outflow = 0.0
    for turned_K, turned_p in ((torch.rot90(K, k, (1, 2)), torch.rot90(p, k, (1, 2))) for k in range(4)):  # each side in turn
        face = (turned_K[:, 0, 1:-1] + turned_K[:, 1, 1:-1]) / 2
        outflow = outflow + (face * (turned_p[:, 1, 1:-1] - turned_p[:, 0, 1:-1])).sum()
    close(darcy_residual(K, p, 0.0, 0.1).sum() * 0.1**2, outflow)


def test_darcy_of_constant_permeability_is_poisson(rng):
    p, source = torch.randn(3, 6, 6, dtype=torch.float64, generator=rng), torch.rand(6, 6, generator=rng)
    close(darcy_residual(torch.full_like(p, 2.5), p, 2.5 * source, 0.3), 2.5 * poisson_residual(p, source.double(), 0.3), 1e-6)


def test_gradients_are_finite_differences(rng):
    images = torch.randn(2, 2, 5, 4, dtype=torch.float64, generator=rng).requires_grad_()
    units = units_between((0.1, 0.0), (1.0, 3.0))
    source = torch.rand(5, 4, generator=rng)
    for penalty in (poisson(source, 0.5, units), darcy(source, 0.5, units)):
        assert torch.autograd.gradcheck(penalty, images)


@pytest.mark.trap(8)
def test_each_image_counts_alone_though_the_batch_is_as_large_as_the_width(rng):
    images, source = torch.randn(4, 2, 4, 4, generator=rng), torch.rand(4, 4, generator=rng)
    for penalty in (poisson(source, 0.5), darcy(source, 0.5)):
        close(penalty(images), torch.cat([penalty(one[None]) for one in images]), rtol=1e-5)


def test_descending_the_residual_solves_poissons_equation():
    """5x5 unknowns inside a boundary of zeros: plain gradient descent against the direct solution of the linear system."""
    n, h = 5, 1 / 6
    source = torch.linspace(-1, 3, 49, dtype=torch.float64).reshape(7, 7)
    second = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    matrix = (np.kron(second, np.eye(n)) + np.kron(np.eye(n), second)) / h**2
    solution = np.linalg.solve(matrix, source[1:-1, 1:-1].flatten().numpy()).reshape(n, n)

    penalty = poisson(source, h)
    low, high = np.linalg.eigvalsh(matrix)[[0, -1]]
    rate = n * n / (low**2 + high**2)  # of the fastest descent on |A u - f|²/n²
    u = torch.zeros(1, 1, n, n, dtype=torch.float64)
    for _ in range(2000):
        u.requires_grad_()
        (grad,) = torch.autograd.grad(penalty(F.pad(u, (1, 1, 1, 1))).sum(), u)
        u = (u - rate * grad).detach()
    close(u[0, 0], torch.from_numpy(solution), rtol=1e-6)
    assert np.abs(solution).max() > 0.05


def test_a_boundary_condition_is_a_masked_mean():
    edge = torch.ones(4, 4)
    edge[1:-1, 1:-1] = 0
    u = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [v**2 for v in (0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15)]
    close(masked_mean(torch.square, edge)(u), torch.tensor([sum(expected) / 12.0]))


def test_units_stretch_each_channel_to_its_range():
    images = torch.tensor([-1.0, 0.0, 1.0, 2.0]).expand(2, 2, 1, 4)
    expected = torch.tensor([[10.0, 15.0, 20.0, 25.0], [-1.0, 0.0, 1.0, 2.0]]).reshape(2, 1, 4).expand(2, 2, 1, 4)
    close(units_between((10, -1), (20, 1))(images), expected)
    close(units_between(0.0, 4.0)(images), 2 * images + 2)
    close(units_between(0.0, (2.0, 4.0))(images)[:, 1], 2 * images[:, 1] + 2)
    assert units_between(0, 1)(images.double()).dtype == torch.float64


def test_the_residual_is_in_physical_units():
    """An image in [-1, 1] that stands for u in [0, 8]: the residual is that of u."""
    image = torch.tensor([[0.0, 0.5, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.25, 0.0]]).reshape(1, 1, 3, 3)
    close(poisson(1.0, 0.5, units_between(0, 8))(image), poisson(1.0, 0.5)(4 * image + 4))
    fields = image.repeat(1, 2, 1, 1)
    physical = torch.stack([fields[:, 0].exp(), 3 * fields[:, 1]], 1)
    close(darcy(1.0, 0.5, lambda x: torch.stack([x[:, 0].exp(), 3 * x[:, 1]], 1))(fields), darcy(1.0, 0.5)(physical))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), ((0, 1), (1, 1)), (0.0, math.nan)])
def test_empty_ranges_are_refused(low, high):
    with pytest.raises(ValueError, match="low must be below high"):
        units_between(low, high)


def test_ranges_do_not_add_channels():
    with pytest.raises(ValueError, match="2 ranges for images of 1 channels"):
        units_between((0, 1), (1, 2))(torch.zeros(3, 1, 4, 4))


def test_bad_input_is_refused_with_the_reason():
    for spacing in (0.0, -1.0, math.nan, math.inf):
        for make in (poisson, darcy):
            with pytest.raises(ValueError, match="spacing is the distance"):
                make(1.0, spacing)
    with pytest.raises(ValueError, match=r"source of shape \(1, 4\) for a field on \(5, 4\)"):
        poisson(torch.ones(1, 4), 1.0)(torch.zeros(2, 1, 5, 4))
    with pytest.raises(ValueError, match="two channels, got images of 1"):
        darcy(1.0, 1.0)(torch.zeros(2, 1, 5, 4))
    for penalty in (poisson(1.0, 1.0), darcy(1.0, 1.0)):
        with pytest.raises(ValueError, match="at least 3x3"):
            penalty(torch.zeros(2, 2, 2, 4))
