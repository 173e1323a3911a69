from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foreign_models as foreign
import planted
from vaeprune.adapters import AdaptedVAE, adapt, measuring
from vaeprune.architectures import BuiltVAE, ConvolutionalVAE, DenseVAE, initialise
from vaeprune.data import MemoryRows
from vaeprune.errors import ModelError, TrainingError, VaepruneError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior
from vaeprune.training import Epoch, Growth, History, Objective, Options, Trained, train
from vaeprune.training.loop import Step, latent_spread


def dense(latents: int = 2) -> DenseVAE:
    vae = DenseVAE((6,), [8], [8], latents)
    initialise(vae, "glorot", seed=0)
    return vae


def convolutional() -> ConvolutionalVAE:
    vae = ConvolutionalVAE((1, 17, 18), [2] * 8, [2] * 8, 2)
    initialise(vae, "glorot", seed=0)
    return vae


def rows(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


ROWS = {"dense": rows(50, 6), "convolutional": rows(17, 1, 17, 18)}
BUILD = {"dense": dense, "convolutional": convolutional}
BOTH = pytest.mark.parametrize("name", BUILD)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(vae: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vae.state_dict().items()}


# What a step is


def test_one_step_is_adam_on_the_mean_loss_of_a_minibatch() -> None:
    vae, x = dense(), ROWS["dense"][:8]
    trained = train(vae, x, Options(1, batch_size=8, learning_rate=0.01, seed=3))
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(8, generator=generator)
    noise = torch.randn(8, 2, generator=generator)
    expected = copy.deepcopy(vae)
    optimiser = torch.optim.Adam(expected.parameters(), lr=0.01)
    loss = Objective()(expected, x[order], noise)
    loss.total.mean().backward()
    optimiser.step()
    for got, wanted in zip(trained.vae.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)
    epoch = trained.history.epochs[0]
    assert epoch.loss == pytest.approx(loss.total.mean().item(), rel=1e-6)
    assert epoch.reconstruction == pytest.approx(loss.reconstruction.mean().item(), rel=1e-6)
    assert epoch.kl == pytest.approx(loss.kl.mean().item(), rel=1e-6)


def test_the_latents_are_measured_after_the_epoch_with_the_weights_at_rest() -> None:
    trained = train(dense(), ROWS["dense"], Options(2, batch_size=8))
    with torch.no_grad():
        mean, logvar = (t.double().numpy() for t in trained.vae.encode(ROWS["dense"]))
    last = trained.history.epochs[-1]
    np.testing.assert_allclose(last.variance, mean.var(0), rtol=1e-5)
    np.testing.assert_allclose(last.posterior_variance, np.exp(logvar).mean(0), rtol=1e-5)


def test_the_loss_goes_down() -> None:
    x = (rows(200, 1) > 0.5).float().expand(200, 6).contiguous()
    losses = [e.loss for e in train(dense(), x, Options(15, batch_size=20, learning_rate=0.01)).history.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] > math.log(2), "one fair bit cannot cost less"


def test_the_convolutional_loss_goes_down() -> None:
    options = Options(6, batch_size=8, learning_rate=0.1)
    losses = [e.loss for e in train(convolutional(), torch.ones(16, 1, 17, 18), options).history.epochs]
    assert losses[0] > 100
    assert losses[-1] < 0.2 * losses[0]


def test_bytes_train_as_numbers_from_0_to_1() -> None:
    x = (ROWS["dense"] * 255).to(torch.uint8)
    a, b = (train(dense(), y, Options(1, batch_size=8)) for y in (x, x.float() / 255))
    assert same(weights(a.vae), weights(b.vae))


def test_flat_rows_train_an_image_network() -> None:
    x = ROWS["convolutional"]
    a, b = (train(convolutional(), y, Options(1, batch_size=8)) for y in (x, x.flatten(1)))
    assert same(weights(a.vae), weights(b.vae))


def test_the_objective_is_the_one_asked_for() -> None:
    a, b = (train(dense(), ROWS["dense"], Options(1, objective=Objective(penalty))).vae for penalty in ("full", "none"))
    assert not torch.equal(a.logvar_head.bias, b.logvar_head.bias)


# The learning rate


def interrupted(vae: nn.Module, x: Any, options: Options, after: int) -> Trained[Any]:
    """A training of `options` that was stopped after so many epochs."""
    kept: list[Trained[Any]] = []

    def stop(done: Trained[Any]) -> None:
        if len(done.history.epochs) == after:
            kept.append(Trained(copy.deepcopy(done.vae), done.history, done.state))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(vae, x, options, on_epoch=stop)
    return kept[0]


def test_the_rate_falls_by_the_same_amount_each_minibatch_and_reaches_0_after_the_last() -> None:
    steps: list[Step] = []
    train(dense(), ROWS["dense"], Options(2, batch_size=20, learning_rate=0.6, decay=True), on_step=steps.append)
    np.testing.assert_allclose([s.learning_rate for s in steps], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert Options(2, decay=True).rate(7, batches=3) == 0


def test_without_decay_the_rate_stays() -> None:
    steps: list[Step] = []
    train(dense(), ROWS["dense"], Options(2, batch_size=20, learning_rate=0.6), on_step=steps.append)
    assert {s.learning_rate for s in steps} == {0.6}


def test_the_rate_is_that_of_the_optimiser() -> None:
    vae, x = dense(), ROWS["dense"][:16]
    trained = train(vae, x, Options(3, batch_size=8, learning_rate=0.01, decay=True))
    generator = torch.Generator().manual_seed(0)
    expected = copy.deepcopy(vae)
    optimiser = torch.optim.Adam(expected.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=6)
    for _ in range(3):
        for indices in torch.randperm(16, generator=generator).split(8):
            optimiser.zero_grad()
            Objective()(expected, x[indices], torch.randn(8, 2, generator=generator)).total.mean().backward()
            optimiser.step()
            schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0)
    for got, wanted in zip(trained.vae.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_last_of_many_steps_under_decay_changes_next_to_nothing() -> None:
    seen: list[Tensor] = []
    train(
        dense(),
        ROWS["dense"],
        Options(500, batch_size=50, learning_rate=0.01, decay=True),
        on_epoch=lambda done: seen.append(weights(done.vae)["output.bias"]),
    )
    assert (seen[1] - seen[0]).abs().max() > 1e-3
    assert (seen[-1] - seen[-2]).abs().max() < 1e-4


@BOTH
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_training_under_decay_goes_on_to_the_bit(name: str, after: int) -> None:
    options = Options(3, batch_size=8, learning_rate=0.01, decay=True)
    whole = train(BUILD[name](), ROWS[name], options)
    first = interrupted(BUILD[name](), ROWS[name], options, after)
    resumed = train(first.vae, ROWS[name], options, resume=(first.history, first.state))
    assert same(weights(resumed.vae), weights(whole.vae))
    assert same(resumed.state, whole.state)
    assert resumed.history == whole.history


# Somebody's own VAE


class Dropped(foreign.Reader):
    """Dropout in the decoder."""

    def forward(self, z: Tensor) -> Tensor:
        return self.out(nn.functional.dropout(torch.tanh(self.read(z)), 0.5, self.training))


def adapted(family: foreign.Family) -> tuple[AdaptedVAE, MemoryRows]:
    return adapt(family.network, family.data), MemoryRows("rows", family.x, *family.conditions)


FOREIGN: dict[str, Callable[[], foreign.Family]] = {
    "plain": foreign.family,
    "conditional": foreign.conditional,
    "class_conditional": foreign.class_conditional,
    "maps": lambda: foreign.maps(quant=True),
    "sequences": foreign.sequences,
    "batch_norm": lambda: foreign.family(reader=foreign.Normalised),
    "dropout": lambda: foreign.family(reader=Dropped),
}
EACH = pytest.mark.parametrize("name", FOREIGN)


@EACH
def test_a_foreign_vae_learns(name: str) -> None:
    vae, x = adapted(FOREIGN[name]())
    trained = train(vae, x, Options(8, batch_size=50, learning_rate=0.01))
    losses = [epoch.loss for epoch in trained.history.epochs]
    assert isinstance(trained.vae, AdaptedVAE)
    assert type(trained.vae.network) is type(vae.network)
    assert losses[-1] < losses[0] - 0.1
    assert all(len(epoch.variance) == vae.latent_size for epoch in trained.history.epochs)


@EACH
def test_a_foreign_vae_is_untouched(name: str) -> None:
    vae, x = adapted(FOREIGN[name]())
    vae.network.eval()
    next(vae.network.children()).train()
    before, flags, generator = weights(vae), [m.training for m in vae.modules()], torch.get_rng_state()
    trained = train(vae, x, Options(1, batch_size=50))
    assert same(weights(vae), before)
    assert [m.training for m in vae.modules()] == flags
    assert all(p.grad is None for p in vae.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m.training for m in trained.vae.modules())
    assert all(p.grad is None for p in trained.vae.parameters())
    assert not same(weights(trained.vae), before)


@EACH
def test_a_foreign_training_is_repeated_and_resumed_to_the_bit(name: str) -> None:
    vae, x = adapted(FOREIGN[name]())
    options = Options(3, batch_size=50, learning_rate=0.01, decay=True)
    whole = train(vae, x, options)
    torch.manual_seed(99)
    again = train(vae, x, options, on_step=lambda _: torch.rand(7))
    first = interrupted(vae, x, options, 1)
    resumed = train(first.vae, x, options, resume=(first.history, first.state))
    for other in (again, resumed):
        assert same(weights(other.vae), weights(whole.vae))
        assert other.history == whole.history
        assert same(other.state, whole.state)


def test_dropout_draws_anew_in_each_step_and_with_each_seed() -> None:
    vae, x = adapted(FOREIGN["dropout"]())
    masks: list[Tensor] = []

    class Noted(Dropped):
        def forward(self, z: Tensor) -> Tensor:
            if self.training:
                masks.append(nn.functional.dropout(torch.ones(20), 0.5))
            return super().forward(z)

    vae.network.reader.__class__ = Noted
    for seed in (0, 1):
        train(vae, x, Options(1, batch_size=100, seed=seed))
    assert len(masks) == 2 * x.count // 100
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


def test_conditions_reach_both_sides_in_the_order_of_their_rows() -> None:
    """Rows that are their own condition: whatever is asked for x can be read off c."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(planted.OwnVAE):
        input_shape = (2, 3)

        def __init__(self) -> None:
            super().__init__()
            self.head, self.out = nn.Linear(6, 4), nn.Linear(2, 6)

        @property
        def latent_size(self) -> int:
            return 2

        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            seen.append((x, condition[0]))
            return Posterior(*self.head(x.flatten(1)).chunk(2, 1))

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            assert torch.equal(condition[0], seen[-1][1])
            return self.out(z).view(-1, 2, 3)

    x = rows(30, 6)
    trained = train(Spy(), MemoryRows("rows", x, (x * 10).double()), Options(1, batch_size=8))
    assert isinstance(trained.vae, Spy)
    assert {len(x) for x, _ in seen} == {8, 6, 30}
    for x, c in seen:
        assert x.shape[1:] == (2, 3)
        assert c.dtype == torch.float32
        torch.testing.assert_close(c, 10 * x.flatten(1))


def test_a_foreign_convolution_may_be_viewed_as_a_vector() -> None:
    class Viewing(planted.OwnVAE):
        input_shape, latent_size = (1, 4, 4), 2

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head, self.out = nn.Conv2d(1, 3, 3), nn.Linear(12, 4), nn.Linear(2, 16)

        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            return Posterior(*self.head(self.convolution(x).view(len(x), -1)).chunk(2, 1))

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return self.out(z).view(-1, 1, 4, 4)

    assert math.isfinite(train(Viewing(), rows(20, 1, 4, 4), Options(1)).history.epochs[0].loss)


def test_a_network_in_float64_is_trained_in_float64() -> None:
    vae, x = adapted(FOREIGN["conditional"]())
    trained = train(copy.deepcopy(vae).double(), x, Options(2, batch_size=50))
    single = train(vae, x, Options(2, batch_size=50))
    for a, b in zip(trained.vae.parameters(), single.vae.parameters(), strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b.double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights_are_trained_through_what_they_are_computed_from(norm: Callable[..., Any]) -> None:
    vae, x = adapted(FOREIGN["plain"]())
    norm(vae.network.body)
    before = weights(vae)
    trained = train(vae, x, Options(2, batch_size=50))
    assert same(weights(vae), before)
    assert not torch.equal(trained.vae.network.body.weight, vae.network.body.weight)


def test_what_requires_no_gradient_stays() -> None:
    vae, x = adapted(FOREIGN["batch_norm"]())
    vae.network.body.requires_grad_(False)
    options = Options(2, batch_size=50)
    first = interrupted(vae, x, options, 1)
    trained = train(first.vae, x, options, resume=(first.history, first.state)).vae
    assert torch.equal(trained.network.body.weight, vae.network.body.weight)
    assert not trained.network.body.weight.requires_grad
    assert not torch.equal(trained.network.fc_mu.weight, vae.network.fc_mu.weight)
    assert not any("body" in name for name in first.state)


def test_a_parameter_no_loss_reaches_does_not_keep_a_training_from_going_on() -> None:
    options = Options(2, batch_size=8, objective=Objective("none", sampling=False))
    whole, first = train(dense(), ROWS["dense"], options), interrupted(dense(), ROWS["dense"], options, 1)
    resumed = train(first.vae, ROWS["dense"], options, resume=(first.history, first.state))
    assert same(weights(resumed.vae), weights(whole.vae))
    assert torch.equal(resumed.vae.logvar_head.weight, dense().logvar_head.weight)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        train(dense().requires_grad_(False), ROWS["dense"])
    assert caught.value.message == ("DenseVAE: has no parameter that requires a gradient, so nothing can be trained")


def test_what_is_no_module_is_refused() -> None:
    class Protocol:
        input_shape, likelihood = (6,), Likelihood()

    with pytest.raises(ModelError, match=r"train: got a Protocol, expected an nn\.Module with the VAE protocol"):
        train(Protocol(), ROWS["dense"])


def test_training_goes_on_where_gradients_are_off() -> None:
    with torch.no_grad():
        a = train(dense(), ROWS["dense"], Options(1))
    assert same(weights(a.vae), weights(train(dense(), ROWS["dense"], Options(1)).vae))


class Probabilities(planted.OwnVAE):
    """A decoder that ends in a sigmoid."""

    input_shape = (6,)
    likelihood = Likelihood("bernoulli", "mean")

    def __init__(self) -> None:
        super().__init__()
        self.head, self.out = nn.Linear(6, 4), nn.Linear(2, 6)

    @property
    def latent_size(self) -> int:
        return 2

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(*self.head(x).chunk(2, 1))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return torch.sigmoid(self.out(z))


def test_a_decoder_of_probabilities_that_gives_nan_is_a_loss_of_nan() -> None:
    vae = Probabilities()
    assert math.isfinite(train(vae, ROWS["dense"], Options(1)).history.epochs[0].loss)
    with torch.no_grad():
        vae.out.bias[0] = math.nan
    with pytest.raises(TrainingError, match="epoch 1, minibatch 1: the loss became nan"):
        train(vae, ROWS["dense"], Options(1))


# What stays as it is


@BOTH
def test_the_input_network_is_untouched(name: str) -> None:
    vae = BUILD[name]()
    vae.eval()
    vae.encoder.train()
    before, flags = weights(vae), [m.training for m in vae.modules()]
    trained = train(vae, ROWS[name], Options(1, batch_size=8))
    assert same(weights(vae), before)
    assert [m.training for m in vae.modules()] == flags
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.is_contiguous() for p in vae.parameters())
    assert trained.vae is not vae
    assert not trained.vae.training
    assert not same(weights(trained.vae), before)


@BOTH
def test_the_rows_and_the_global_generator_are_left_alone(name: str) -> None:
    vae, before, generator = BUILD[name](), ROWS[name].clone(), torch.get_rng_state()
    train(vae, ROWS[name], Options(1, batch_size=8))
    assert torch.equal(ROWS[name], before)
    assert torch.equal(torch.get_rng_state(), generator)


# Repeating and resuming


@BOTH
def test_the_same_seed_gives_the_same_bits_and_another_does_not(name: str) -> None:
    a, b, c = (train(BUILD[name](), ROWS[name], Options(1, batch_size=8, seed=seed)) for seed in (0, 0, 1))
    assert same(weights(a.vae), weights(b.vae))
    assert a.history == b.history
    assert not same(weights(a.vae), weights(c.vae))


@BOTH
@pytest.mark.parametrize("penalty", ["full", "quadratic"])
def test_two_epochs_and_one_more_are_three_to_the_bit(name: str, penalty: Any) -> None:
    three, two = (
        Options(n, batch_size=8, learning_rate=0.01, objective=Objective(penalty), trace_every=2) for n in (3, 2)
    )
    whole = train(BUILD[name](), ROWS[name], three)
    first = train(BUILD[name](), ROWS[name], two)
    resumed = train(first.vae, ROWS[name], three, resume=(first.history, first.state))
    assert same(weights(resumed.vae), weights(whole.vae))
    assert same(resumed.state, whole.state)
    assert resumed.history == whole.history


def test_a_warm_up_that_is_interrupted_goes_on_to_the_bit() -> None:
    grown = (Growth(latents=1, epoch=0, warm_up=2.5),)
    three, two = (Options(n, batch_size=8, learning_rate=0.01, grown=grown) for n in (3, 2))
    whole = train(dense(), ROWS["dense"], three)
    first = train(dense(), ROWS["dense"], two)
    resumed = train(first.vae, ROWS["dense"], three, resume=(first.history, first.state))
    assert same(weights(resumed.vae), weights(whole.vae))
    assert same(resumed.state, whole.state)
    plain = train(dense(), ROWS["dense"], Options(3, batch_size=8, learning_rate=0.01))
    assert not same(weights(plain.vae), weights(whole.vae))


def test_a_step_of_the_warm_up_weighs_the_new_latents_by_the_share_of_it_that_is_done() -> None:
    vae, x = dense(), ROWS["dense"][:16]
    grown = (Growth(latents=1, epoch=0, warm_up=4.0),)
    seen: list[Tensor | None] = []

    class Watched(Objective):
        def __call__(self, *arguments: Any, kl_weights: Tensor | None = None) -> Any:
            seen.append(kl_weights)
            return super().__call__(*arguments, kl_weights=kl_weights)

    train(vae, x, Options(5, batch_size=8, objective=Watched(), grown=grown))
    assert [w.tolist() for w in seen if w is not None] == [[1, step / 8] for step in range(8)]
    assert seen[8:] == [None, None]


@BOTH
def test_resuming_leaves_the_given_state_untouched(name: str) -> None:
    first = train(BUILD[name](), ROWS[name], Options(1, batch_size=8))
    before = {k: v.clone() for k, v in first.state.items()}
    train(first.vae, ROWS[name], Options(2, batch_size=8), resume=(first.history, first.state))
    assert same(first.state, before)
    assert len(first.history.epochs) == 1


def test_nothing_left_to_do_is_refused() -> None:
    first = train(dense(), ROWS["dense"], Options(2))
    with pytest.raises(TrainingError) as caught:
        train(first.vae, ROWS["dense"], Options(2), resume=(first.history, first.state))
    assert str(caught.value) == "epochs: 2 are done already, got 2; ask for more with --epochs"


def test_the_state_of_another_network_is_refused() -> None:
    first = train(dense(), ROWS["dense"], Options(1))
    with pytest.raises(TrainingError) as caught:
        train(dense(3), ROWS["dense"], Options(2), resume=(first.history, first.state))
    assert caught.value.message == ("training state: exp_avg of mean_head.weight has shape (2, 8), expected (3, 8)")
    with pytest.raises(TrainingError, match="training state: does not belong to this network"):
        train(DenseVAE((6,), [], [8], 2), ROWS["dense"], Options(2), resume=(first.history, first.state))
    with pytest.raises(TrainingError, match="training state: does not belong to this network"):
        train(first.vae, ROWS["dense"], Options(2), resume=(first.history, {}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator", torch.zeros(3, dtype=torch.uint8)),
        ("generator", torch.zeros(5056)),
        ("step:mean_head.bias", torch.zeros(3)),
        ("exp_avg:mean_head.bias", torch.full((2,), math.nan)),
        ("exp_avg_sq:mean_head.bias", torch.tensor([-1.0, 1.0])),
    ],
)
def test_a_damaged_state_is_refused(key: str, value: Tensor) -> None:
    first = train(dense(), ROWS["dense"], Options(1))
    with pytest.raises(TrainingError):
        train(first.vae, ROWS["dense"], Options(2), resume=(first.history, first.state | {key: value}))


# What is reported


def test_each_step_is_reported_with_the_means_so_far() -> None:
    steps: list[Step] = []
    trained = train(dense(), ROWS["dense"], Options(2, batch_size=20), on_step=steps.append)
    assert [(s.epoch, s.batch, s.batches) for s in steps] == [(e, b, 3) for e in (1, 2) for b in (1, 2, 3)]
    for last, epoch in zip(steps[2::3], trained.history.epochs, strict=True):
        assert (last.loss, last.reconstruction, last.kl) == (epoch.loss, epoch.reconstruction, epoch.kl)
        assert last.loss == pytest.approx(last.reconstruction + last.kl)


def test_a_step_shows_the_network_as_it_left_it_and_looking_changes_nothing() -> None:
    x = ROWS["dense"]
    seen: list[Tensor] = []

    def look(step: Step) -> None:
        with measuring(step.vae):
            seen.append(step.vae.encode(x).mean.clone())

    watched = train(dense(), x, Options(1, batch_size=20), on_step=look)
    alone = train(dense(), x, Options(1, batch_size=20))
    assert same(weights(watched.vae), weights(alone.vae))
    with torch.no_grad():
        torch.testing.assert_close(seen[-1], watched.vae.encode(x).mean)
    assert not torch.allclose(seen[0], seen[1])


def test_the_last_step_of_an_epoch_is_the_last_that_was_announced() -> None:
    steps: list[Step] = []
    train(dense(), ROWS["dense"][:41], Options(1, batch_size=20), on_step=steps.append)
    assert steps[-1].batch == steps[-1].batches


def test_each_epoch_is_reported_with_its_result() -> None:
    seen: list[tuple[int, dict[str, Tensor], bool]] = []

    def note(done: Trained) -> None:
        seen.append((len(done.history.epochs), weights(done.vae), done.vae.training))

    trained = train(dense(), ROWS["dense"], Options(3, batch_size=8), on_epoch=note)
    assert [(n, training) for n, _, training in seen] == [(1, False), (2, False), (3, False)]
    assert same(seen[-1][1], weights(trained.vae))
    assert same(seen[0][1], weights(train(dense(), ROWS["dense"], Options(1, batch_size=8)).vae))
    assert [e.epoch for e in trained.history.epochs] == [1, 2, 3]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (4, [1, 5])])
def test_the_trace_has_a_point_every_so_many_minibatches(every: int, steps: list[int]) -> None:
    trained = train(dense(), ROWS["dense"], Options(2, batch_size=20, trace_every=every))
    assert [point.step for point in trained.history.trace] == steps
    assert all(len(point.variance) == len(point.posterior_variance) == 2 for point in trained.history.trace)


def test_the_trace_counts_the_minibatches_there_were() -> None:
    trained = train(dense(), ROWS["dense"][:41], Options(2, batch_size=20, trace_every=1))
    assert [point.step for point in trained.history.trace] == list(range(1, len(trained.history.trace) + 1))


def test_the_first_trace_point_is_of_the_untrained_network() -> None:
    vae, x = dense(), ROWS["dense"]
    point = train(vae, x, Options(1, batch_size=50, trace_every=1)).history.trace[0]
    with torch.no_grad():
        mean, logvar = (t.double().numpy() for t in vae.encode(x))
    np.testing.assert_allclose(point.variance, mean.var(0), rtol=1e-5)
    np.testing.assert_allclose(point.posterior_variance, np.exp(logvar).mean(0), rtol=1e-5)


def test_tracing_changes_no_weight() -> None:
    a, b = (train(dense(), ROWS["dense"], Options(1, batch_size=8, trace_every=n)) for n in (0, 1))
    assert same(weights(a.vae), weights(b.vae))


def test_the_spread_of_latents_is_over_all_batches_together() -> None:
    mean, logvar = rows(7, 3).double(), rows(7, 3).double() - 0.5
    got = latent_spread([Posterior(m, v) for m, v in zip(mean.split(3), logvar.split(3), strict=True)])
    np.testing.assert_allclose(got[0], mean.numpy().var(0), rtol=1e-12)
    np.testing.assert_allclose(got[1], np.exp(logvar.numpy()).mean(0), rtol=1e-12)


def test_every_position_of_a_map_counts_in_its_spread() -> None:
    mean, logvar = rows(7, 3, 2, 5).double(), rows(7, 3, 2, 5).double() - 0.5
    got = latent_spread([Posterior(m, v) for m, v in zip(mean.split(3), logvar.split(3), strict=True)])
    np.testing.assert_allclose(got[0], mean.numpy().var((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(got[1], np.exp(logvar.numpy()).mean((0, 2, 3)), rtol=1e-12)


# What goes wrong


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    seen: list[Trained] = []

    def spoil(done: Trained) -> None:
        seen.append(done)
        with torch.no_grad():
            done.vae.mean_head.weight.fill_(math.nan)  # type: ignore[union-attr]

    with pytest.raises(TrainingError) as caught:
        train(dense(), ROWS["dense"], Options(3, batch_size=25), on_epoch=spoil)
    assert caught.value.message == "epoch 2, minibatch 1: the loss became nan"
    assert caught.value.hint == "lower --learning-rate; the last finished epoch is kept"
    assert len(seen) == 1


@pytest.mark.parametrize("batch_size", [10, 50])
def test_weights_that_diverge_in_the_last_step_of_an_epoch_stop_the_training(batch_size: int) -> None:
    with pytest.raises(TrainingError, match="epoch 1"):
        train(dense(), ROWS["dense"], Options(1, batch_size=batch_size, learning_rate=1e30))


def test_an_exception_from_a_callback_passes_through() -> None:
    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dense(), ROWS["dense"], Options(1), on_step=stop)


def test_a_single_row_is_refused() -> None:
    with pytest.raises(VaepruneError):
        train(dense(), ROWS["dense"][:1], Options(1))


@BOTH
def test_rows_the_likelihood_cannot_give_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"the Bernoulli likelihood expects \[0, 1\]"):
        train(BUILD[name](), ROWS[name] * 4 - 1, Options(1, batch_size=8))


def test_any_finite_rows_train_a_gaussian_network() -> None:
    vae = DenseVAE((6,), [8], [8], 2, Likelihood("gaussian", "mean"))
    epoch = train(vae, ROWS["dense"] * 9 - 4, Options(1, batch_size=8)).history.epochs[0]
    assert math.isfinite(epoch.loss)


def test_rows_of_another_size_are_refused() -> None:
    with pytest.raises(VaepruneError, match=r"array: rows have shape \(5,\), the model expects \(6,\)"):
        train(dense(), torch.rand(20, 5))
    with pytest.raises(VaepruneError, match="NaN or infinite values"):
        train(dense(), torch.full((20, 6), math.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, expected at least 1"),
        ({"batch_size": 1}, "batch_size: got 1, expected at least 2"),
        ({"trace_every": -1}, "trace_every: got -1, expected at least 0"),
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a positive finite number"),
        ({"learning_rate": math.nan}, "learning_rate: got nan, expected a positive finite number"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        Options(**arguments)
    assert caught.value.message == message


@BOTH
def test_a_last_minibatch_of_one_row_stops_nothing(name: str) -> None:
    count = 17
    trained = train(BUILD[name](), MemoryRows("rows", ROWS[name][:count]), Options(1, batch_size=8))
    assert isinstance(trained.history, History)
    assert isinstance(trained.history.epochs[0], Epoch)
    assert isinstance(trained.vae, BuiltVAE)
    assert math.isfinite(trained.history.epochs[0].loss)
