"""Options, skips and runtime shape checks of the whole suite."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))  # helpers and oracles, from every folder
install_import_hook("xhat", "checked.checked")  # before xhat is imported: signatures are checked in every test

torch.set_num_threads(1)  # small tensors: threads only wait for each other, on busy cores for most of the time

settings.register_profile("xhat", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("xhat")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--soak", action="store_true", help="take every point, kill and damage instead of a few: make soak, hours")


def pytest_collection_modifyitems(config, items):
    slow = config.getoption("--slow") or bool(os.environ.get("CI"))
    for item in items:
        if "slow" in item.keywords and not slow:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow (CI runs it)"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def registered():
    """The registered parts; those that a test adds are forgotten after it."""
    import helpers
    import xhat.config.names  # noqa: F401  # what registers xhat's own
    from xhat import registry

    kept = [family.names() for family in registry.FAMILIES]
    yield
    helpers.forget_used_files()
    for family, names in zip(registry.FAMILIES, kept, strict=True):
        family.restore(names)


@pytest.fixture
def rng():
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(1234)


@pytest.fixture
def draw_of(rng):
    """Pairs (x0, noise) of small float64 images, (n, 1, 2, 2) each."""

    def make(n):
        return tuple(torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=rng) for _ in range(2))

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """An .npz of small grey images with four classes."""
    from helpers import write_digits

    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, digits):
    """A conditional run of ten steps on small images."""
    from helpers import TINY, xhat

    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert xhat("train", "mnist", "--run", run, "--data", digits, "--max_steps", 10, *TINY)[0] == 0
    return run


@pytest.fixture(scope="session")
def mnist_run(tmp_path_factory):
    """A few steps on the real MNIST."""
    from helpers import TINY, xhat

    run = tmp_path_factory.mktemp("runs") / "mnist"
    assert xhat("train", "mnist", "--run", run, "--max_steps", 6, *TINY)[0] == 0
    return run
