"""Where a dependency tracer goes wrong while `forward` still succeeds: right values, or a refusal that says where."""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.utils import parametrizations

from foreign_models import (
    IDLE,
    LATENTS,
    WIDTH,
    Family,
    OwnVAE,
    Reader,
    ThroughSigmoid,
    analysed,
    chunked,
    cut_exactly,
    family,
    flipped,
    halves,
    idle_columns,
    idle_rows,
    plant,
    rows,
    sliced,
    split,
)
from planted import assert_untouched, randomise, snapshot
from vaeprune.adapters import adapt
from vaeprune.adapters.copying import copied
from vaeprune.analysis import analyze
from vaeprune.errors import ModelError, PlanError, TraceError, VaepruneError
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Slice
from vaeprune.surgery.planning import plan


def refused(made: Family, match: str, error: type[VaepruneError] = TraceError) -> None:
    """The analysis works, the plan does not, and the model is as it was."""
    vae, data, analysis = analysed(made)
    before = snapshot(made.network)
    with pytest.raises(error, match=match):
        plan(vae, analysis, data)
    assert_untouched(made.network, before)


def exact_or_refused(made: Family, *words: str) -> None:
    """Never silently wrong; a refusal names all `words`."""
    refusal = ""
    try:
        cut_exactly(made)
    except (TraceError, PlanError) as error:
        refusal = str(error)
    assert not refusal or all(word in refusal for word in words), refusal


# ---- halves


class TwoHalves(nn.Module):
    """p, q = z.chunk(2), read by different layers."""

    reads = ()

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(latents // 2, 4), nn.Linear(latents // 2, 4)
        self.out = nn.Linear(8, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        p, q = z.chunk(2, 1)
        return self.out(torch.tanh(torch.cat([self.first(p), self.second(q)], 1)))


def two_halves(idle: tuple[int, ...]) -> Family:
    network = plant(OwnVAE(6, reader=TwoHalves), idle)
    for latent in idle:
        idle_columns((network.reader.first if latent < 3 else network.reader.second).weight, 1, [latent % 3])
    return Family(network, rows(), idle=idle, smaller=lambda k: OwnVAE(k, reader=TwoHalves))


def test_one_idle_latent_in_each_half_of_a_chunk_is_cut_from_its_own_layer() -> None:
    made = cut_exactly(two_halves((1, 5))).plan
    assert Slice("reader.first.weight", 1, 3, (0, 2)) in made.slices
    assert Slice("reader.second.weight", 1, 3, (0, 1)) in made.slices


def test_idle_latents_in_one_half_of_a_chunk_would_move_its_middle_and_are_refused() -> None:
    refused(two_halves((0, 1)), "no longer runs|differs")


class TwoBodies(OwnVAE):
    """p, q = h.chunk(2) feed the heads of mean and logvar."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.body = nn.Linear(WIDTH, 14)

    def encode(self, x: Tensor) -> Any:
        p, q = self.hidden(x).chunk(2, 1)
        return self.fc_mu(p), self.fc_var(q)


def test_halves_of_a_hidden_layer_that_feed_different_heads_are_not_mixed_up() -> None:
    made = cut_exactly(family(TwoBodies)).plan
    assert {s.key for s in made.slices} == {
        "fc_mu.weight", "fc_mu.bias", "fc_var.weight", "fc_var.bias", "reader.read.weight",
    }  # fmt: skip


class SecondHalf(OwnVAE):
    """Only the second half of a wide head is used, so its middle moves when rows go."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim, heads=chunked)
        self.head = nn.Linear(7, 4 * latent_dim)

    def encode(self, x: Tensor) -> Any:
        _, used = self.head(self.hidden(x)).chunk(2, 1)
        return used.chunk(2, 1)


def test_a_head_of_which_only_the_second_half_is_used_is_cut_exactly_or_refused() -> None:
    network = plant(SecondHalf())
    idle_rows(network.head, [10 + i for i in IDLE], [15 + i for i in IDLE], live=range(15, 20))
    exact_or_refused(Family(network, rows()), "no longer runs", "written into the code")


class OnlyLast(nn.Module):
    """The decoder reads the last three latents only."""

    reads = ()

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.read, self.out = nn.Linear(3, 6), nn.Linear(6, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z[:, -3:])))


def test_latents_that_nothing_reads_lose_their_rows_alone() -> None:
    made = cut_exactly(family(reader=OnlyLast, idle=(0, 1))).plan
    assert not [s for s in made.slices if s.key.startswith("reader")]


def test_view_by_two_is_not_taken_for_interleaving() -> None:
    made = cut_exactly(family(heads=halves)).plan
    assert Slice("head.weight", 0, 10, (0, 2, 4, 5, 7, 9)) in made.slices


def test_logvars_in_another_order_than_means_are_not_swapped() -> None:
    made = cut_exactly(family(heads=flipped, idle=(0, 1))).plan
    assert Slice("fc_mu.weight", 0, 5, (2, 3, 4)) in made.slices
    assert Slice("fc_var.weight", 0, 5, (0, 1, 2)) in made.slices


def test_rows_permuted_by_numbers_are_cut_exactly_or_refused() -> None:
    class Permuted(OwnVAE):
        def encode(self, x: Tensor) -> Any:
            h = self.hidden(x)
            return self.fc_mu(h)[:, [4, 2, 0, 3, 1]], self.fc_var(h)[:, [0, 1, 2, 3, 4]]

    network = plant(Permuted(), ())
    idle_rows(network.fc_mu, (1, 2), ())
    idle_rows(network.fc_var, (), (1, 4))
    idle_columns(network.reader.read.weight, 1, (1, 4))
    refused(Family(network, rows(), idle=(1, 4)), "no longer runs")


# ---- constants


def test_a_constant_sigmoid_unit_folds() -> None:
    result = cut_exactly(family(reader=ThroughSigmoid))
    change = result.plan.bias_changes["reader.read.bias"]
    weight = result.vae.network.reader.read.weight.double()
    held = result.plan.removals
    expected = sum(weight[:, r.latent] * torch.sigmoid(torch.tensor(r.constant, dtype=torch.float64)) for r in held)
    torch.testing.assert_close(change, expected.detach(), rtol=0, atol=1e-12)


class CalledTwice(Reader):
    """One layer reads z and 2·z: one bias cannot take both constants over."""

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z)) + torch.tanh(self.read(2 * z)))


def test_a_layer_called_twice_with_different_constants_is_refused() -> None:
    refused(family(reader=CalledTwice), r"reader\.read\.weight: is called several times and sees different constants")


# ---- modes


class MeanInEval(OwnVAE):
    """In eval mode z = mu, and the logvar is unused."""

    def reparameterize(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return super().reparameterize(mean, logvar) if self.training else mean


@pytest.mark.parametrize("heads", [chunked, flipped, None])
def test_logvars_that_eval_mode_does_not_use_are_cut_as_well(heads: Any) -> None:
    cut_exactly(family(MeanInEval, **({"heads": heads} if heads else {})))


class NoGrad(OwnVAE):
    @torch.no_grad()
    def encode(self, x: Tensor) -> Any:
        return super().encode(x)


def test_an_encoder_under_no_grad_is_traced() -> None:
    cut_exactly(family(NoGrad))


class Restful(OwnVAE):
    """Dropout and BatchNorm in body and decoder."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.norm, self.drop = nn.BatchNorm1d(7), nn.Dropout(0.5)

    def hidden(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(super().hidden(x)))

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(self.drop(z))


def test_a_model_left_in_train_mode_is_measured_in_eval_mode_and_left_so() -> None:
    made = family(Restful)
    made.network.train()
    made.network.norm.eval()
    result = cut_exactly(made)
    assert made.network.training
    assert not made.network.norm.training
    assert result.smaller.network.training
    assert not result.smaller.network.norm.training


def test_gradients_and_frozen_weights_stay() -> None:
    made = family()
    made.network(made.x[:4])[0].sum().backward()
    made.network.body.requires_grad_(False)
    grad = made.network.body.weight.grad.clone()
    vae, data, analysis = analysed(made)
    before = snapshot(made.network)
    plan(vae, analysis, data)
    assert_untouched(made.network, before)
    assert torch.equal(made.network.body.weight.grad, grad)


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    made = family()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    vae, data, analysis = analysed(made)
    plan(vae, analysis, data)
    assert torch.equal(torch.rand(3), expected)


def test_a_float64_model_is_cut() -> None:
    made = family()
    made.network.double()
    cut_exactly(made, torch.float64, 1e-10)


def test_a_bfloat16_model_is_cut() -> None:
    made = family()
    made.network.bfloat16()
    result = cut_exactly(made, torch.bfloat16, 4e-2)
    assert result.smaller.network.fc_mu.weight.dtype == torch.bfloat16


class CudaNoise(OwnVAE):
    def reparameterize(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, device="cuda")


class CudaEncoder(OwnVAE):
    def encode(self, x: Tensor) -> Any:
        return super().encode(x.to("cuda:0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_written_into_sampling_alone_is_no_obstacle() -> None:
    result = cut_exactly(family(CudaNoise))
    assert "--spread" in " ".join(result.vae.assumptions)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_written_into_the_encoder_is_quoted_with_its_line() -> None:
    made = family(CudaEncoder)
    with pytest.raises(ModelError, match=r"(?s)CUDA.*test_traps\.py:\d+: return super\(\)\.encode\(x\.to"):
        adapt(made.network, made.data)


# ---- norms and attention right after z


class GroupNormFirst(Reader):
    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.norm = nn.GroupNorm(1, latents)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(self.norm(z))


class LayerNormFirst(Reader):
    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.norm = nn.LayerNorm(latents, elementwise_affine=False)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(self.norm(z))


class SoftmaxFirst(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.softmax(1))


class AttentionFirst(Reader):
    def forward(self, z: Tensor) -> Tensor:
        token = z[:, :, None]
        return super().forward(F.scaled_dot_product_attention(token, token, token)[:, :, 0])


@pytest.mark.parametrize(
    ("reader", "module", "function"),
    [
        (GroupNormFirst, "reader.norm", "group_norm"),
        (LayerNormFirst, "reader.norm", "layer_norm"),
        (SoftmaxFirst, "reader", "softmax"),
        (AttentionFirst, "reader", "scaled_dot_product_attention"),
    ],
)
def test_latents_mixed_before_any_weight_are_analysed_and_the_cut_names_what_mixes_them(
    reader: Any, module: str, function: str
) -> None:
    made = family(reader=reader)
    vae = adapt(made.network, made.data)
    analysis = analyze(vae, made.data, ablate="all")
    assert analysis.latent_size == LATENTS
    with pytest.raises(TraceError) as caught:
        plan(vae, analysis, made.data, remove=IDLE)
    assert module in str(caught.value)
    assert function in str(caught.value)


# ---- rows and columns


def test_live_rows_and_columns_whose_entries_sum_to_zero_stay() -> None:
    made = family()
    with torch.no_grad():
        for live in (0, 2, 4):
            made.network.fc_mu.weight[live] -= made.network.fc_mu.weight[live].mean()
            made.network.reader.read.weight[:, live] -= made.network.reader.read.weight[:, live].mean()
    assert cut_exactly(made).plan.kept_latents == [0, 2, 4]


class Tied(OwnVAE):
    """Means 1 and 2 are one row."""

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.fc_mu(h)[:, [0, 1, 1, 3, 4]], self.fc_var(h)


def test_two_latents_tied_to_one_row_are_not_parted() -> None:
    made = family(Tied, idle=(1, 3))
    vae = adapt(made.network, made.data)
    analysis = analyze(vae, made.data)
    with pytest.raises(TraceError, match=r"fc_mu\.weight: row 1 serves latents 1, 2 together"):
        plan(vae, analysis, made.data, remove=[1], keep=[0, 2, 3, 4])


# ---- functions that swallow a NaN


class WherePositive(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(torch.where(z > 0, z, torch.zeros_like(z)))


class MaskedFill(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.masked_fill(~(z > 0), 0.0))


class NanToNum(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(torch.nan_to_num(z))


class MaximumOfTwo(Reader):
    """fmax takes the number where the other is NaN."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(torch.fmax(z, torch.full_like(z, -0.5)))


@pytest.mark.parametrize("reader", [WherePositive, MaskedFill, NanToNum, MaximumOfTwo])
def test_a_function_that_swallows_a_nan_before_the_reader_never_leads_to_a_wrong_cut(reader: Any) -> None:
    exact_or_refused(family(reader=reader), "reader.read.weight", "NaN")


def swallowing(function: Any) -> type[OwnVAE]:
    class Swallowing(OwnVAE):
        def encode(self, x: Tensor) -> Any:
            mean, logvar = super().encode(x)
            return function(mean), function(logvar)

    return Swallowing


@pytest.mark.parametrize(
    "function",
    [
        lambda t: torch.where(t > 0, t, t * 0.5 - 0.1),
        lambda t: t.masked_fill(t != t, 0.0),
        torch.nan_to_num,
        lambda t: t.clamp(-30, 20),
    ],
)
def test_a_function_that_swallows_a_nan_after_the_heads_never_leads_to_a_wrong_cut(function: Any) -> None:
    made = family(swallowing(function))
    with torch.no_grad():
        made.network.fc_mu.bias[list(IDLE)] = 0.5  # on one side of every bend
    vae = adapt(made.network, made.data)
    with contextlib.suppress(TraceError, PlanError):
        cut_exactly(Family(made.network, made.x, smaller=made.smaller))
    assert vae.latent_size == LATENTS


# ---- what users wrap around


class GivesNormal(OwnVAE):
    """A distribution that checks its arguments."""

    def encode(self, x: Tensor) -> Any:
        mean, logvar = super().encode(x)
        return Normal(mean, torch.exp(0.5 * logvar), validate_args=True)

    def forward(self, x: Tensor) -> Any:
        q = self.encode(x)
        return self.decode(q.rsample()), q


def test_a_normal_that_validates_its_arguments_is_traced() -> None:
    def posterior(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        q = network.encode(x)
        return q.loc, 2 * q.scale.log()

    made = family(GivesNormal)
    cut_exactly(Family(made.network, made.x, posterior=posterior, smaller=made.smaller))


def test_hooks_of_the_user_stay_and_work() -> None:
    made = family()
    calls: list[str] = []
    made.network.reader.register_forward_pre_hook(lambda _m, args: (args[0] * 2,))
    made.network.body.register_forward_hook(lambda _m, _a, result: calls.append("body"))
    cut_exactly(made.__class__(made.network, made.x))
    assert len(made.network.reader._forward_pre_hooks) == 1
    assert calls


def test_a_compiled_model_is_cut_inside_its_wrapper() -> None:
    made = family()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler warns about its own imports
        wrapped = torch.compile(made.network)
    vae = adapt(wrapped, made.data)
    assert vae.network is made.network
    result = cut_exactly(made)
    smaller = cut(wrapped, result.plan)
    assert type(smaller) is OwnVAE
    assert smaller.fc_mu.weight.shape == (3, 7)


def test_a_model_wrapped_for_distributed_training_is_cut_inside_its_wrapper(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        made = family()
        wrapped = nn.parallel.DistributedDataParallel(made.network)
        vae = adapt(wrapped, made.data)
        assert vae.network is made.network
        made_plan = plan(wrapped, analyze(wrapped, made.data), made.data)
        assert made_plan.removed_latents == list(IDLE)
        assert not any(s.key.startswith("module.") for s in made_plan.slices)
    finally:
        dist.destroy_process_group()


class Cached(OwnVAE):
    """Keeps an activation with its graph, which `deepcopy` refuses."""

    def encode(self, x: Tensor) -> Any:
        mean, logvar = super().encode(x)
        self.last_mean = mean
        return mean, logvar


def test_a_module_that_deepcopy_refuses_is_cut() -> None:
    made = family(Cached)
    parametrizations.weight_norm(made.network.fc_mu)
    made.network(made.x[:3])
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(made.network)
    cut_exactly(Family(made.network, made.x))


def test_a_copy_of_a_parametrised_module_shares_nothing_with_it() -> None:
    """torch gives a parametrised module a class of its own, and a property on it that going plain deletes."""
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    expected = layer.weight.detach().clone()
    twin = copied(nn.Sequential(layer))
    torch.nn.utils.parametrize.remove_parametrizations(twin[0], "weight")
    assert torch.equal(layer.weight, expected)
    assert torch.equal(twin[0].weight, expected)


# ---- refusals


class Flow(OwnVAE):
    """z goes through a flow before it is decoded."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.u = nn.Parameter(torch.linspace(0.3, 0.9, latent_dim))
        self.w = nn.Parameter(torch.linspace(-0.7, 0.8, latent_dim))

    def forward(self, x: Tensor) -> Any:
        mean, logvar = self.encode(x)
        z = self.reparameterize(mean, logvar)
        z = z + self.u * torch.tanh(z @ self.w)[:, None]
        return self.decode(z), mean, logvar


def test_a_flow_posterior_is_refused() -> None:
    made = family(Flow)
    with pytest.raises(ModelError, match="Flow: samples z in a way that no reading of encode explains"):
        adapt(made.network, made.data)


class GammaVAE(OwnVAE):
    def encode(self, x: Tensor) -> Any:
        a, b = super().encode(x)
        return F.softplus(a) + 1, F.softplus(b) + 1

    def forward(self, x: Tensor) -> Any:
        a, b = self.encode(x)
        return self.decode(torch.distributions.Gamma(a, b).rsample()), a, b


def test_a_gamma_posterior_is_refused() -> None:
    made = family(GammaVAE)
    with pytest.raises(ModelError, match="GammaVAE"):
        adapt(made.network, made.data)


class GivesGamma(GammaVAE):
    def encode(self, x: Tensor) -> Any:
        return torch.distributions.Gamma(*super().encode(x))


def test_a_gamma_distribution_is_refused_by_name() -> None:
    made = family(GivesGamma)
    with pytest.raises(ModelError, match=r"GivesGamma\.encode: returns a Gamma posterior"):
        adapt(made.network, made.data)


class Hierarchical(OwnVAE):
    """Two floors of latents; the upper one's posterior and prior are nets."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.upper = nn.Linear(latent_dim, 6)
        self.lower = nn.Linear(3, latent_dim)

    def encode(self, x: Tensor) -> Any:
        first = super().encode(x)
        return [first, self.upper(first[0]).chunk(2, 1)]

    def decode(self, z1: Tensor, z2: Tensor) -> Tensor:
        return super().decode(z1 + self.lower(z2))

    def forward(self, x: Tensor) -> Any:
        (m1, s1), (m2, s2) = self.encode(x)
        return self.decode(self.reparameterize(m1, s1), self.reparameterize(m2, s2)), m1, s1


def test_a_hierarchical_posterior_is_refused() -> None:
    made = family(Hierarchical)
    with pytest.raises(ModelError, match="Hierarchical"):
        adapt(made.network, made.data)


class LearnedPrior(OwnVAE):
    """p(z) = N(prior_mean, exp(prior_logvar)), both trained."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.prior_mean = nn.Parameter(torch.ones(latent_dim))
        self.prior_logvar = nn.Parameter(torch.ones(latent_dim))


def test_a_learned_prior_is_refused_by_name() -> None:
    made = family(LearnedPrior)
    with pytest.raises((ModelError, TraceError), match="prior"):
        plan(made.network, analyze(made.network, made.data), made.data, remove=IDLE)


class NoPosterior(nn.Module):
    """A plain autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def test_an_encoder_without_posterior_is_refused() -> None:
    with pytest.raises(ModelError, match="NoPosterior: no posterior can be read: encode on"):
        adapt(NoPosterior(), rows())


class EvenAutoencoder(NoPosterior):
    """A code of even width is no (mean, logvar): the decoder takes all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)


def test_an_even_code_without_posterior_is_refused() -> None:
    with pytest.raises(ModelError, match="EvenAutoencoder"):
        adapt(EvenAutoencoder(), rows())


class InnerProduct(nn.Module):
    """A decoder without weights: every output is the product of z with itself."""

    reads = ()

    def __init__(self, latents: int) -> None:
        super().__init__()

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([z.square().sum(1)] * WIDTH, 1) / 10


def test_a_decoder_without_weights_is_refused_where_a_mean_is_not_zero() -> None:
    made = family(reader=InnerProduct)
    vae = adapt(made.network, made.data)
    analysis = analyze(vae, made.data, ablate="all")
    with pytest.raises(TraceError, match="latents 0, 1, 2, 3, 4 reach the output without passing a weight"):
        plan(vae, analysis, made.data, remove=IDLE)


def test_a_decoder_without_weights_is_cut_where_the_mean_is_zero() -> None:
    made = family(reader=InnerProduct)
    with torch.no_grad():
        for layer in (made.network.fc_mu.weight, made.network.fc_mu.bias):
            layer[list(IDLE)] = 0
    vae = adapt(made.network, made.data)
    result = plan(vae, analyze(vae, made.data, ablate="all"), made.data, remove=IDLE)
    smaller = cut(vae, result)
    z = torch.randn(6, 3)
    held = torch.zeros(6, 5).index_copy(1, torch.tensor([0, 2, 4]), z)
    torch.testing.assert_close(smaller.decode(z), vae.decode(held))


class RestlessEncoder(OwnVAE):
    def encode(self, x: Tensor) -> Any:
        return super().encode(x + 0.1 * torch.rand_like(x))


def test_means_that_change_between_identical_calls_are_refused() -> None:
    made = family(RestlessEncoder)
    with pytest.raises((ModelError, TraceError), match="RestlessEncoder"):
        plan(made.network, analyze(made.network, made.data), made.data, remove=IDLE)


class RestlessDecoder(OwnVAE):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z) + 0.1 * torch.rand(len(z), WIDTH)


def test_outputs_that_change_between_identical_calls_are_refused() -> None:
    made = family(RestlessDecoder, heads=split)
    with pytest.raises((ModelError, TraceError), match="RestlessDecoder"):
        plan(made.network, analyze(made.network, made.data), made.data, remove=IDLE)


# ---- only forward


class ForwardOnly(nn.Module):
    """No encode, no decode."""

    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        super().__init__()
        self.order = order
        self.body, self.fc_mu, self.fc_var = nn.Linear(WIDTH, 7), nn.Linear(7, 5), nn.Linear(7, 5)
        self.read, self.out = nn.Linear(5, 6), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        mean, logvar = self.fc_mu(h), self.fc_var(h)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        parts = (self.out(torch.tanh(self.read(z))), mean, logvar)
        return tuple(parts[i] for i in self.order)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_a_model_with_forward_alone_is_analysed_and_its_cut_is_exact_or_refused_by_name(
    order: tuple[int, int, int],
) -> None:
    network = ForwardOnly(order)
    randomise(network, 0)
    idle_rows(network.fc_mu, IDLE, ())
    idle_rows(network.fc_var, (), IDLE, live=range(5))
    idle_columns(network.read.weight, 1, IDLE)
    made = Family(network.eval(), rows())
    vae = adapt(network, made.data)
    x = made.x[:9]
    with torch.no_grad():
        torch.manual_seed(0)
        parts = network(x)
        mean, logvar = (parts[order.index(i)] for i in (1, 2))
        found = vae.encode(x)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.logvar, logvar)
    analysis = analyze(vae, made.data)
    assert [i for i in range(5) if analysis.latents[i].variance < 0.01] == list(IDLE)
    with contextlib.suppress(TraceError):
        small = plan(vae, analysis, made.data, remove=IDLE)
        assert {s.key for s in small.slices} >= {"read.weight", "fc_mu.weight", "fc_var.weight"}


def test_sliced_heads_of_a_model_in_half_precision_storage_keep_their_rows() -> None:
    """float32 is the usual case: slices alone, so kept rows are bit-identical."""
    made = family(heads=sliced)
    result = cut_exactly(made, torch.float32, 1e-5)
    kept = [0, 2, 4, 5, 7, 9]
    assert torch.equal(result.smaller.network.head.weight, made.network.head.weight[kept])
