"""Networks that are built for other callers, and the time that a network sees."""

from dataclasses import dataclass

import diffusers
import pytest
import torch
from torch import nn

import xhat
from oracles import SHAPE
from xhat import NOISE, Cosine, Denoiser, Denoising, Discrete, Objective, Term, V


class Answers(nn.Module):
    """A network that answers with `form(z)`."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, z, t):
        return self.form(z)


@dataclass
class Output:
    sample: torch.Tensor


class Other(nn.Module):
    """A network with names of its own."""

    def forward(self, sample, timestep, class_labels):
        return sample


class Noting(nn.Module):
    def forward(self, z, t):
        self.seen = t
        return 0 * z


FORMS = {
    "tuple": (lambda z: (z, 1), r"a tuple of 2.*\[0\]"),
    "dataclass": (lambda z: Output(z), r"a Output .*\.sample"),
    "dict": (lambda z: {"pred": z}, r"a dict .*\['pred'\]"),
    "nothing": (lambda z: None, "returned nothing"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_tensor_is_named_with_the_way_out(form):
    make, message = FORMS[form]
    with pytest.raises(ValueError, match=message):
        Denoiser(Answers(make), Cosine(), V)(torch.zeros(2, *SHAPE), torch.full((2,), 0.5))


def test_other_names_are_told_by_name():
    denoiser, z, t = Denoiser(Other(), Cosine(), V), torch.zeros(2, *SHAPE), torch.full((2,), 0.5)
    with pytest.raises(
        ValueError, match=r"net\(z, t, label=label\).*\(sample, timestep, class_labels\): give class_labels in cond, or wrap it"
    ):
        denoiser(z, t, {"label": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'class_labels'"):
        denoiser(z, t)


def test_a_type_error_of_the_networks_own_is_its_own():
    with pytest.raises(TypeError, match="unsupported operand"):
        Denoiser(Answers(lambda z: z + "1"), Cosine(), V)(torch.zeros(2, *SHAPE), torch.full((2,), 0.5))


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )


WRAPPED = {"bare": lambda net: net, "data_parallel": nn.DataParallel}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_bare_diffusers_network_is_given_its_own_timesteps(unet, wrapped):
    """Not t in [0, 1]: the prediction is the library's own at the timestep, also inside a wrapper."""
    schedule = Discrete.linear_beta(1000)
    denoiser = Denoiser(WRAPPED[wrapped](unet), schedule, NOISE)
    z, steps = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 1000])
    torch.testing.assert_close(denoiser(z, schedule.time(steps)).raw, unet(z, steps - 1).sample)


def test_a_bare_diffusers_network_is_refused_where_no_step_can_be_counted(unet):
    with pytest.raises(ValueError, match="discrete schedule"):
        Denoiser(unet, Cosine(), V)
    Denoiser(unet, xhat.Flow(), xhat.FLOW, time_input=lambda schedule, t: 1000 * t)  # whoever says what it is given


def test_a_wrapped_network_keeps_what_it_says_of_itself():
    net = xhat.UNet(widths=(8,), blocks=(1,), embedding=16, size=8, fold=1)
    net.target, net.time_input = V, xhat.time_inputs.log_sigma
    inside = nn.DataParallel(net)
    assert Denoiser(inside, Cosine(), V).time_input is xhat.time_inputs.log_sigma
    with pytest.raises(ValueError, match="UNet predicts v, not noise"):
        Denoiser(inside, Cosine(), NOISE)


@pytest.mark.trap(34)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("on_the_way", ["objective", "sampler"])
def test_all_thousand_timesteps_arrive_exactly_whatever_the_datas_precision(dtype, on_the_way):
    """In bf16 499 is 500 and 998 is 1000, outside of the table."""
    schedule, net = Discrete.linear_beta(1000), Noting()
    denoiser = Denoiser(net, schedule, NOISE, time_input=xhat.time_inputs.diffusers_index)
    x0 = torch.zeros(1000, 1, 1, 1, dtype=dtype)
    if on_the_way == "objective":
        Objective(denoiser, {"d": Term(Denoising())})(x0)
        seen = net.seen.sort().values
        assert seen.tolist() == [float(i) for i in range(1000)]
    else:
        seen = []
        net.register_forward_hook(lambda net, inputs, output: seen.append(inputs[1].item()))
        xhat.sample(denoiser, xhat.DDIM(), x0[:1], xhat.uniform_times(schedule, 1000))
        assert seen == [float(i) for i in reversed(range(1000))]


@pytest.mark.trap(34)
def test_a_network_that_cannot_take_a_float32_time_is_told_to_cast_its_embedding():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Linear(1, 1).to(torch.bfloat16)

        def forward(self, z, t):
            return z + self.mlp(t.unsqueeze(1)).reshape(-1, 1, 1, 1)

    with pytest.raises(ValueError, match=r"time is torch.float32.*cast the embedding"):
        Denoiser(Own(), Cosine(), V)(torch.zeros(2, *SHAPE, dtype=torch.bfloat16), torch.full((2,), 0.5))


@pytest.mark.trap(34)
def test_our_own_networks_take_exact_times_in_bf16():
    net = xhat.UNet(widths=(8,), blocks=(1,), embedding=16, size=8, fold=1).to(torch.bfloat16)
    z = torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)
    out = Denoiser(net, Cosine(), V)(z, torch.full((2,), 0.5))
    assert out.raw.dtype == torch.bfloat16
    assert torch.isfinite(out.raw).all()
