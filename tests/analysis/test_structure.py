"""What running a tiny model shows of it: facts, with their nearest innocent neighbours beside them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted import GAUSSIAN, MapVAE, PlainVAE, assert_untouched, convolutional, dense, snapshot
from vaeprune.analysis.structure import Structure, look
from vaeprune.architectures import initialise
from vaeprune.data import MemoryRows, as_data
from vaeprune.posterior import Posterior


def seen(vae: nn.Module, rows: int = 300, **options: bool) -> Structure:
    data = torch.rand(rows, *vae.input_shape, generator=torch.Generator().manual_seed(0))
    vae.eval()
    return look(vae, as_data(data).calibrate, **options)


def test_an_ordinary_network_shows_nothing() -> None:
    assert seen(PlainVAE()) == Structure()
    assert seen(dense()) == Structure()
    assert seen(dense(likelihood=GAUSSIAN)) == Structure()


def test_batch_normalisation_inside_the_encoder_is_none_before_the_mean() -> None:
    assert seen(convolutional(), 150).normalised is None


def test_the_model_is_left_as_it_was() -> None:
    vae = PlainVAE().train()
    before = snapshot(vae)
    look(vae, as_data(torch.rand(200, 5)).calibrate)
    assert_untouched(vae, before)


# ---- normalised means


class Normalised(PlainVAE):
    def __init__(self, norm: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.after = norm, after or nn.Identity()

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        posterior = super().encode(x)
        return Posterior(self.after(self.norm(posterior.mean)), posterior.logvar)


class Functional(PlainVAE):
    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        posterior = super().encode(x)
        return Posterior(F.batch_norm(posterior.mean, torch.zeros(4), torch.ones(4)), posterior.logvar)


def test_a_batch_norm_without_a_weight_is_seen_and_named() -> None:
    found = seen(Normalised(nn.BatchNorm1d(4, affine=False)))
    assert found.normalised == "the batch normalisation norm is the last thing before the mean"
    assert found.scale_fixed


def test_one_with_a_weight_is_named_by_that_weight() -> None:
    vae = Normalised(nn.BatchNorm1d(4))
    vae.other = nn.BatchNorm1d(4)
    assert seen(vae).normalised == "the batch normalisation norm is the last thing before the mean"


def test_one_whose_weight_is_trained_has_no_fixed_scale() -> None:
    found = seen(Normalised(nn.BatchNorm1d(4)))
    assert found.normalised
    assert not found.scale_fixed


def test_one_whose_weight_is_frozen_has_a_fixed_scale() -> None:
    norm = nn.BatchNorm1d(4)
    norm.weight.requires_grad_(False)
    assert seen(Normalised(norm)).scale_fixed


def test_a_functional_one_is_seen_too() -> None:
    found = seen(Functional())
    assert found.normalised == "a batch normalisation is the last thing before the mean"
    assert found.scale_fixed


@pytest.mark.parametrize("after", [nn.Linear(4, 4), nn.Tanh()], ids=["linear", "tanh"])
def test_one_that_something_follows_is_not_the_last_thing(after: nn.Module) -> None:
    assert seen(Normalised(nn.BatchNorm1d(4, affine=False), after)).normalised is None


# ---- unsteady


class Unsteady(PlainVAE):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        if self.where == "dropout":
            return F.dropout(h, 0.5)  # training=True unless told otherwise
        if self.where == "batch":
            return F.batch_norm(h, None, None, training=True)
        return F.dropout(h, 0.5, training=self.training)

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(F.dropout(z, 0.5) if self.where == "decoder" else z)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("dropout", "encode gives other means each time it is called with the same rows"),
        ("batch", "the means of a row depend on the rows it is encoded together with"),
        ("decoder", "decode gives another output each time it is called with the same z"),
        ("nowhere", None),
    ],
)
def test_what_changes_from_call_to_call_in_eval_mode(where: str, told: str | None) -> None:
    assert seen(Unsteady(where)).unsteady == told


def test_without_a_decoder_only_the_encoder_is_run() -> None:
    assert seen(Unsteady("decoder"), decodes=False).unsteady is None
    vae = PlainVAE()
    vae.log_s = nn.Parameter(torch.tensor(-1.0))
    assert seen(vae, decodes=False).learned_scales == ()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("share", "told"), [(1e-5, False), (1e-3, True)])
def test_what_is_unsteady_is_measured_by_how_much_means_vary(size: float, share: float, told: bool) -> None:
    class Trembling(PlainVAE):
        calls = 0

        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            posterior = super().encode(x)
            self.calls += 1
            spread = posterior.mean.std()
            return Posterior(size * (posterior.mean + (self.calls % 2) * share * spread), posterior.logvar)

    assert (seen(Trembling().double()).unsteady is not None) is told


# ---- clamped


class Clamped(PlainVAE):
    def __init__(self, **limits: float) -> None:
        super().__init__()
        self.limits = limits

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        posterior = super().encode(x)
        return Posterior(posterior.mean, (posterior.logvar - 0.5).clamp(**self.limits))


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max": -0.2}, f"sigma² goes no further above than {math.exp(-0.2):.3g}, where "),
        ({"min": -0.5}, f"sigma² goes no further below than {math.exp(-0.5):.3g}, where "),
        ({"max": -9.0}, f"sigma² goes no further above than {math.exp(-9):.3g}, where 100% of its values are"),
        ({"min": -30.0, "max": 20.0}, None),
        ({"max": 0.0}, None),
    ],
    ids=str,
)
def test_a_limit_that_sigma_stands_at(limits: dict[str, float], told: str | None) -> None:
    found = seen(Clamped(**limits)).clamped
    assert found is None if told is None else found is not None and found.startswith(told)


def test_a_latent_whose_sigma_is_constant_by_itself_is_not_clamped() -> None:
    vae = PlainVAE()
    with torch.no_grad():
        vae.logvar.weight[0] = 0
        vae.logvar.bias[0] = 9.0
    assert seen(vae).clamped is None


def test_a_map_whose_sigma_is_constant_by_itself_is_not_clamped() -> None:
    vae = MapVAE()
    with torch.no_grad():
        vae.head.bias[3:] = -9.0
        vae.head.weight[3] = 0
        vae.head.bias[3] = -1.0
    assert seen(vae, 150).clamped is None


@pytest.mark.parametrize(("times", "told"), [(2, False), (3, True)])
def test_a_row_that_is_there_twice_is_no_limit(times: int, told: bool) -> None:
    vae, x = PlainVAE(), torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    x[:times] = 2.0
    vae.encode = lambda x, *_: Posterior(x[:, :4], x[:, :4] - 4)
    assert (look(vae, MemoryRows("rows", x)).clamped is not None) is told


# ---- untouched weights


@pytest.mark.parametrize(("how", "name"), [("torch", "PyTorch's default"), ("glorot", "Glorot's")])
def test_weights_as_they_were_drawn_are_known(how: str, name: str) -> None:
    vae = dense(input_shape=(12,), encoder=(20, 20), decoder=(20, 20))
    initialise(vae, how, 0)
    assert seen(vae).untouched == (
        f"no weight of its 7 layers lies outside the range that {name} initialisation draws from"
    )


@pytest.mark.parametrize("how", ["torch", "glorot"])
def test_a_few_steps_take_them_out_of_it(how: str) -> None:
    vae = dense(input_shape=(12,), encoder=(20, 20), decoder=(20, 20))
    initialise(vae, how, 0)
    optimiser = torch.optim.Adam(vae.parameters(), 1e-2)
    x = torch.rand(64, 12)
    for _ in range(20):
        posterior = vae.encode(x)
        loss = vae.likelihood.nats(x, vae.decode_parameters(posterior.mean)).mean() + posterior.kl().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert seen(vae).untouched is None


def test_two_large_layers_tell_and_one_does_not() -> None:
    for hidden, told in ((9, True), (5, False)):
        vae = dense(encoder=(hidden,))  # 12·9 and 7·12 weights are enough to tell, 12·5 are not
        initialise(vae, "torch", 0)
        assert (seen(vae).untouched is not None) is told


@pytest.mark.parametrize("how", ["glorot", "he"])
def test_biases_that_were_drawn_as_zero_must_still_be_zero(how: str) -> None:
    vae = dense(input_shape=(12,), encoder=(20, 20), decoder=(20, 20))
    initialise(vae, "glorot", 0)
    if how == "he":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for layer in vae.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_uniform_(layer.weight)
    name = {"glorot": "Glorot's", "he": "He's"}[how]
    assert f"the range that {name} initialisation draws from" in str(seen(vae).untouched)
    with torch.no_grad():
        vae.output.bias[0] = 1e-3
    assert seen(vae).untouched is None


def test_tiny_networks_do_not_tell() -> None:
    vae = PlainVAE()
    initialise(vae, "torch", 0)
    assert seen(vae).untouched is None


# ---- numbers that nothing reads


def test_a_number_that_neither_half_reads_may_be_a_learned_scale() -> None:
    vae = PlainVAE()
    vae.log_s = nn.Parameter(torch.tensor(-1.0))
    (scale,) = seen(vae).learned_scales
    assert scale.name == "log_s"
    assert math.exp(-2) in [pytest.approx(v) for v in scale.variances]
    assert all(v > 0 for v in scale.variances)


def test_a_number_that_the_decoder_reads_is_none() -> None:
    class Scaled(PlainVAE):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return self.gain * self.decoder(z)

    assert seen(Scaled()).learned_scales == ()
