"""Darcy flow on the unit square, 64 x 64 cells: random permeabilities k, and the pressure p that each of them has.

-div(k grad p) = f, no flow through the walls, mean pressure 0; f is 10 in one corner and -10 in the opposite one. log k is a
Gaussian field of covariance exp(-distance / 0.1), its 64 strongest modes: the setting of Bastek et al. (2024,
arXiv:2403.14404), here solved by finite volumes, which conserve mass to rounding.

    python solve.py FOLDER [--n 4000]
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh, splu

SIDE, LENGTH, MODES, CORNER, RATE = 64, 0.1, 64, 0.125, 10.0


def source(side: int = SIDE) -> np.ndarray:
    """f of the cells, (side, side)."""
    inside = (np.arange(side) + 0.5) / side < CORNER
    at_first = np.outer(inside, inside)
    return RATE * (at_first * 1.0 - at_first[::-1, ::-1])


def covariance(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Variances of the strongest modes of log k, (MODES,), and the modes (cells, MODES)."""
    x, y = np.divmod(np.arange(side**2), side)
    apart = np.hypot(x[:, None] - x, y[:, None] - y) / side
    return eigsh(np.exp(-apart / LENGTH), MODES, v0=np.ones(side**2))


def log_permeabilities(count: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Gaussian fields, (count, side, side)."""
    values, modes = covariance(side)
    drawn = np.random.default_rng(seed).normal(size=(count, MODES))
    return ((drawn * np.sqrt(values)) @ modes.T).reshape(count, side, side)


def pressure(k: np.ndarray, f: np.ndarray) -> np.ndarray:
    """p of one field k (side, side): through each face flows the harmonic mean of k times the difference of p."""
    side = len(k)
    number = np.arange(side**2).reshape(side, side)
    pairs = [(number[1:], number[:-1]), (number[:, 1:], number[:, :-1])]
    a, b = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    flat = k.ravel()
    face = 2 * flat[a] * flat[b] / (flat[a] + flat[b]) * side**2
    graph = sparse.coo_array((face, (a, b)), shape=(side**2, side**2))
    system = sparse.csgraph.laplacian((graph + graph.T).tocsr())
    rest = splu(system[1:, 1:].tocsc(), permc_spec="MMD_AT_PLUS_A").solve(f.ravel()[1:])  # the first cell's pressure is 0
    p = np.concatenate([[0.0], rest])
    return (p - p.mean()).reshape(side, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logs, f = log_permeabilities(asked.n, asked.seed), source()
    pressures = np.stack([pressure(np.exp(log_k), f) for log_k in logs])
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("log_permeability", logs), ("pressure", pressures)):
        np.save(asked.folder / f"{name}.npy", values[:, None].astype(np.float32))
    print(f"{asked.n} fields of {SIDE} x {SIDE} in {asked.folder}: log_permeability.npy, pressure.npy")


if __name__ == "__main__":
    main()
