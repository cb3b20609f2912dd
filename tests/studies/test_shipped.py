"""The shipped studies: each resolves, and those of the formulations compare all there is to compare."""

import re
import warnings
from pathlib import Path

import pytest
import yaml

from helpers import forget_used_files
from xhat.config.use import use
from xhat.registry import TARGETS, TIMES, WEIGHTINGS
from xhat.studies.check import checked_configs
from xhat.studies.read import read_study

ROOT = Path(__file__).parents[2]
STUDIES = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob("studies/*.yaml")}
USED = {"bound-as-loss-colour": "shapes.py", "embedded-64": "embedded.py", "embedded-512": "embedded.py"}  # in benchmarks
OWN = [name for name, study in STUDIES.items() if "init" not in study["common"]]  # the others start from the demo's run
LOSS = "terms.denoise.loss"
NOISE_LEVELS = {"high_snr", "high_snr_latents", "between", "inverse_posterior_variance"}  # of image losses
COMBINED = {"convert_weighting"}  # another writing of the same weight


def said(study, key):
    """What each change says under a key, the common value included."""
    study = STUDIES[study]
    return [str({**study["common"], **(change or {})}[key]) for change in study["changes"].values()]


def names_in(texts):
    return set(re.findall(r"[a-z_0-9]+", " ".join(texts)))


def test_there_are_studies():
    assert {"formulations", "targets", "weightings", "times", "norms"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_shipped_study_resolves_without_a_warning(name):
    """A weighting outside the space it is written for would warn."""
    forget_used_files()
    use([str(ROOT / "benchmarks" / USED[name])] if name in USED else [])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        study = read_study(ROOT / "studies" / f"{name}.yaml")
        configs, _ = checked_configs(study)
    assert len(configs) > 1


@pytest.mark.parametrize("name", OWN)
def test_the_changes_of_a_study_differ_and_share_budget_and_schedule(name):
    changes = [str(change) for change in STUDIES[name]["changes"].values()]
    assert len(set(changes)) == len(changes)
    shared = {"max_steps", "batch_size"} | (set() if "bound" in name else {"schedule"})  # VDM's bound learns its own
    assert all(not shared & set(change or {}) for change in STUDIES[name]["changes"].values())


def test_every_target_is_compared_on_one_loss():
    assert names_in(said("targets", "target")) >= set(TARGETS)
    assert set(said("targets", LOSS)) == {"denoising(space=x0, weighting=min_snr(1))"}


def test_every_weighting_of_the_denoising_loss_is_compared():
    assert names_in(said("weightings", LOSS)) | {"constant"} >= set(WEIGHTINGS) - NOISE_LEVELS - COMBINED
    assert {f"denoising(space={space})" for space in ("noise", "v", "x0")} <= set(said("weightings", LOSS))  # constant
    assert set(said("weightings", "target")) == {"v"}


def test_every_norm_is_compared():
    found = [re.fullmatch(r"denoising\(space=v, norm=([a-z]+).*\)", loss)[1] for loss in said("norms", LOSS)]
    assert sorted(found) == ["absolute", "euclidean", "huber", "squared"]


def test_times_are_compared_on_one_loss():
    assert names_in(said("times", "times")) >= set(TIMES) - {"logit_normal", "log_normal_sigma", "shifted", "uncorrected"}
    assert set(said("times", LOSS)) == {"denoising(space=v)"}


def test_what_is_said_to_go_through_the_times_in_cycles_does():
    study = STUDIES["times"]
    for cycles, change in ((1, "sequential, 1 cycle"), (10, "sequential, 10 cycles")):
        assert study["changes"][change]["times"] == f"sequential({study['common']['max_steps'] // cycles})"


def test_each_formulation_is_trained_in_its_own_space():
    pairs = list(zip(said("formulations", "target"), said("formulations", LOSS), strict=True))
    own = [(target, f"denoising(space={target})") for target in ("noise", "scaled_noise", "step_noise", "x0")]
    assert sorted(pairs) == sorted([*own, ("step_noise", "increment")])
