"""@xhat.register finds the family of a part by its class, by what it returns, or by how it is called."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import xhat
from xhat import registry
from xhat.config.register import NAMED, family_of
from xhat.sampling.steering import Steering


class Net(nn.Module):
    def forward(self, z, t, label=None):
        return z


class Critic(nn.Module):
    def forward(self, images):
        return images.flatten(1).mean(1)


class Mine(xhat.Loss):
    pass


class Table(xhat.Schedule):
    pass


class Late(xhat.TimeSampler):
    pass


class Step(xhat.samplers.Sampler):
    pass


class Own(xhat.multipliers.Multiplier):
    pass


class Source:
    def get(self, step, shard, rows):
        return None

    def fingerprint(self):
        return ""


@dataclass(frozen=True)
class soft:
    gamma: float = 5.0

    def __call__(self, logsnr, schedule):
        return logsnr


@dataclass(frozen=True)
class ramp:
    n: int = 3

    def __call__(self, seed, step):
        return 1.0


@dataclass(frozen=True)
class darker:
    limit: float = 0.0

    def __call__(self, images):
        return images.flatten(1).mean(1)


def penalty(images):
    return images


def any_name(y: Tensor) -> Tensor:
    return y


def reward(images, draw):
    return images


def with_default(images, limit=0.3):
    return images


def weighting(logsnr, schedule):
    return logsnr


def gate(seed, step):
    return 1.0


def norm(error, weight=None):
    return error


def where(draw, values):
    return values


def estimate(denoiser, draw):
    return draw.x0


def spacing(schedule, steps):
    return schedule


def time_input(schedule, t):
    return t


class Pull(Steering):
    def around(self, sampler):
        return sampler


def likelihood(denoiser, drawn, draw):
    return draw.t


def advantage(rewards):
    return rewards


def pairing(x0, noise):
    return noise


def net_maker(channels: int) -> nn.Module:
    return Net()


def source_maker(n: int = 3) -> xhat.data.DataSource:
    return Source()


KINDS = {
    "network": (Net, net_maker),
    "loss": (Mine,),
    "schedule": (Table,),
    "times": (Late,),
    "sampler": (Step,),
    "multiplier": (Own,),
    "data": (Source, source_maker),
    "weighting": (soft, weighting),
    "gate": (ramp, gate),
    "penalty": (darker, penalty, any_name, reward, with_default, Critic),
    "norm": (norm,),
    "where": (where,),
    "estimate": (estimate,),
    "spacing": (spacing,),
    "time_input": (time_input,),
    "steering": (Pull,),
    "likelihood": (likelihood,),
    "advantage": (advantage,),
    "pairing": (pairing,),
    "target": (xhat.Target("mine", lambda schedule, t: (t, t)),),
}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in KINDS.items() for part in parts])
def test_the_family_of_a_part(kind, part):
    assert family_of(part) is NAMED[kind]
    assert xhat.register(part) is part
    name = part.name if kind == "target" else registry.snake_case(part.__name__)
    assert NAMED[kind][name] is part


def test_all_families_can_be_extended():
    assert {family.kind for family in NAMED.values()} == {family.kind for family in registry.FAMILIES}


def test_annotations_that_exist_for_type_checkers_alone_hide_nothing():
    def darkest(images: "Pictures") -> "Values":
        return images.flatten(1).amin(1)

    assert family_of(darkest) is registry.PENALTIES


def test_what_nobody_can_tell_says_it_itself():
    def maker(width, depth):
        return Net()

    with pytest.raises(ValueError, match=r"nobody can tell what maker is: say so with @xhat.register.network"):
        xhat.register(maker)
    assert xhat.register.network(maker) is maker
    assert registry.NETWORKS["maker"] is maker
    with pytest.raises(AttributeError, match=r"there is no register.netwrok: known are network, data"):
        xhat.register.netwrok(maker)


def test_a_name_that_exists_is_refused_and_ones_own_is_defined_again():
    def total_variation(images):
        return images

    with pytest.raises(ValueError, match="there is a penalty called total_variation already"):
        xhat.register(total_variation)

    def defined(value):
        def mine(images):
            return images.flatten(1).mean(1) + value

        return mine

    first, second = defined(1), defined(2)
    xhat.register(first)
    xhat.register(second)
    assert registry.PENALTIES["mine"] is second, "as a cell of a notebook that is run again"
    assert torch.is_tensor(second(torch.zeros(2, 3)))
