"""Configs of runs that earlier versions wrote."""

import pytest

from xhat.config.build import build_denoiser, build_objective
from xhat.config.config import LATER_KEYS, Config, TermConfig, from_values, to_values
from xhat.config.earlier import upgraded
from xhat.config.parsing import config_of
from xhat.data.shape import DataShape

TODAY = {
    "denoising(space=x0, weight=min_snr(5))": "denoising(space=x0, weighting=min_snr(5))",
    "denoising(space=v, weight=moved(min_snr(5), x0, v))": "denoising(space=v, weighting=convert_weighting(min_snr(5), x0, v))",
    "denoising(v, learned_uncertainty)": "learned_uncertainty(denoising(v))",
    "denoising(v, learned_uncertainty(outer=None), squared)": "learned_uncertainty(denoising(v, norm=squared))",
    "denoising(space=v, weight=moved(weight=min_snr(5), source=x0, space=v))": (
        "denoising(space=v, weighting=convert_weighting(weighting=min_snr(5), source=x0, space=v))"
    ),
    "increment(weight=constant)": "increment(weighting=constant)",
    "image_loss(total_variation, weight=between(0, 8))": "image_loss(total_variation, weighting=between(0, 8))",
    "image_loss(total_variation, full_chain(heun(), 3, None))": "image_loss(total_variation, full_chain(heun(), 3, all_steps))",
    "image_loss(total_variation, rollout(ddim, 3, 2))": "image_loss(total_variation, rollout(ddim, 3, last(2)))",
    "image_loss(total_variation, full_chain(steps=4, grad_steps=surrogate(2)))": (
        "image_loss(total_variation, full_chain(steps=4, differentiate=surrogate(2)))"
    ),
    "image_loss(total_variation, full_chain(grad_steps=3))": "image_loss(total_variation, full_chain(differentiate=last(3)))",
    "denoising(space=v, weight=learned_uncertainty)": "learned_uncertainty(denoising(space=v))",
    "denoising(space=x0, weight=learned_uncertainty(edm_weight(target), from_density(log_normal_sigma)))": (
        "learned_uncertainty(denoising(space=x0, weighting=edm_weight(target)), outer=from_density(log_normal_sigma))"
    ),
}


def config(loss):
    return {
        **to_values(Config()),
        "target": "edm(0.5)",
        "schedule": "linear_beta",
        "terms": {"a": {"loss": loss, "weight": 0.5}},
    }


@pytest.mark.parametrize("loss", TODAY)
def test_a_loss_of_before_is_todays(loss):
    values = upgraded(config(loss))
    assert values["terms"]["a"] == {"loss": TODAY[loss], "weight": 0.5}
    made = config_of(values)
    network = "unet(widths=(8, 16), blocks=(1, 1))"
    made = Config(**{**vars(made), "network": network})
    build_objective(made, build_denoiser(made, DataShape(1, 8, None)))


@pytest.mark.parametrize("loss", [*TODAY.values(), "denoising(", "nothing of ours", "variational_bound"])
def test_todays_losses_stay_as_they_are(loss):
    values = config(loss)
    assert upgraded(values) == values


def test_values_without_terms_stay_as_they_are():
    assert upgraded({"data": "mnist"}) == {"data": "mnist"}
    assert upgraded({"terms": {"a": TermConfig("x")}})["terms"]["a"] == TermConfig("x")


FIRST = [
    "init",
    "data",
    "image_size",
    "labels",
    "label_dropout",
    "network",
    "schedule",
    "target",
    "variance",
    "time_input",
    "times",
    "terms",
    "input_perturbation",
    "seed",
    "batch_size",
    "accumulate",
    "max_steps",
    "max_images",
    "max_minutes",
    "checkpoint_every",
    "sample_every",
    "log_every",
    "eval_every",
    "precision",
    "compile",
    "ema",
    "optimizer",
    "sampling",
]
"""The keys that configs have had from the first version on: they never grow."""


def test_a_config_of_the_first_version_is_read():
    """Whoever adds a key says in LATER_KEYS what its absence meant: else no run of before is read any more."""
    values = to_values(Config())
    assert set(values) - set(FIRST) == set(LATER_KEYS)
    assert to_values(from_values({key: values[key] for key in FIRST})) == {**values, **LATER_KEYS}
