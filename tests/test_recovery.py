from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foreign_models as foreign
from planted import assert_untouched, convolutional, dense, snapshot
from vaeprune import recovery
from vaeprune.adapters import AdaptedVAE, adapt
from vaeprune.analysis import analyze
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data import DataSets, MemoryRows
from vaeprune.data.sets import as_data, part
from vaeprune.data.sources import MemorySource
from vaeprune.errors import DataError, TrainingError
from vaeprune.model_folder import ModelFolder, load, write_model_folder
from vaeprune.posterior import VAE
from vaeprune.recovery import in_memory, objective_of, recover
from vaeprune.surgery.cut import cut
from vaeprune.surgery.planning import plan
from vaeprune.training import Objective, Options, train
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe


def stripes(count: int = 400) -> Tensor:
    """Rows (count, 12) in which three fair bits decide, blurred."""
    generator = torch.Generator().manual_seed(0)
    bits = (torch.rand(count, 3, generator=generator) > 0.5).float().repeat_interleave(4, 1)
    return 0.05 + 0.9 * bits + 0.05 * (torch.rand(count, 12, generator=generator) - 0.5)


@pytest.fixture(scope="module")
def sets() -> DataSets:
    return as_data(stripes())


@pytest.fixture(scope="module")
def network(sets: DataSets) -> DenseVAE:
    """Trained on the stripes."""
    vae = DenseVAE((12,), [16], [16], 4)
    initialise(vae, "glorot", 0)
    return train(vae, in_memory(sets.calibrate, torch.float32), Options(30, batch_size=20, learning_rate=0.01)).vae


@pytest.fixture
def damaged(network: DenseVAE) -> DenseVAE:
    """The same with half of its hidden units gone."""
    vae = copy.deepcopy(network)
    with torch.no_grad():
        vae.encoder[0].weight[::2] = 0
        vae.decoder[0].weight[1::2] = 0
    return vae


def loss_of(vae: VAE, sets: DataSets, objective: Objective | None = None) -> float:
    """Mean loss on the verify rows, nats a row."""
    x, *condition = next(sets.verify.batches(10_000))
    noise = torch.randn(len(x), *vae.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return (objective or Objective())(vae, x.view(-1, *vae.input_shape), noise, *condition).total.mean().item()


def weights(vae: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vae.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What it gives


def test_a_damaged_network_recovers(network: DenseVAE, damaged: DenseVAE, sets: DataSets) -> None:
    whole, broken = loss_of(network, sets), loss_of(damaged, sets)
    recovered = loss_of(recover(damaged, sets, 20, learning_rate=0.01, batch_size=20), sets)
    assert broken > whole + 1, "nothing to recover from"
    assert recovered < broken - 0.8 * (broken - whole)


def test_it_is_the_training_loop_under_decay_on_the_calibration_rows(damaged: DenseVAE, sets: DataSets) -> None:
    x = torch.cat([x.clone() for (x,) in sets.calibrate.batches(50)])
    options = Options(3, batch_size=32, learning_rate=2e-3, objective=Objective("full", 0.5), seed=4, decay=True)
    got = recover(damaged, sets, 3, objective=Objective("full", 0.5), learning_rate=2e-3, batch_size=32, seed=4)
    assert same(got, train(damaged, x, options).vae)


FOREIGN = {
    "conditional": foreign.conditional,
    "class_conditional": foreign.class_conditional,
    "maps": lambda: foreign.maps(quant=False),
    "sequences": foreign.sequences,
    "batch_norm": lambda: foreign.family(reader=foreign.Normalised),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_vae_recovers_after_a_cut(name: str) -> None:
    family = FOREIGN[name]()
    smaller = foreign.planned_cut(family).smaller
    before = snapshot(smaller.network)
    recovered = recover(smaller, family.data, 5, learning_rate=0.01, batch_size=50)
    assert_untouched(smaller.network, before)
    assert isinstance(recovered, AdaptedVAE)
    assert type(recovered.network) is type(smaller.network)
    assert recovered.latent_shape == smaller.latent_shape
    assert loss_of(recovered, family.data) < loss_of(smaller, family.data) - 0.05
    assert same(recovered, recover(smaller, family.data, 5, learning_rate=0.01, batch_size=50))


@pytest.mark.parametrize("build", [dense, convolutional])
def test_a_built_network_after_a_cut_of_its_own_latents(build: Any) -> None:
    vae = build()
    data = as_data(torch.rand(300, *vae.input_shape, generator=torch.Generator().manual_seed(0)))
    smaller = cut(vae, plan(vae, analyze(vae, data), data))
    recovered = recover(smaller, data, 2, learning_rate=0.01)
    assert type(recovered) is type(vae)
    assert recovered.latent_size == smaller.latent_size < vae.latent_size
    assert loss_of(recovered, data) < loss_of(smaller, data)


# What stays as it is


@pytest.mark.parametrize("training", [True, False])
def test_the_model_passed_in_stays_as_it_is_and_in_its_mode(training: bool) -> None:
    vae = convolutional().train(training)
    vae.encoder.train(not training)
    data = as_data(torch.rand(150, 1, 17, 18, generator=torch.Generator().manual_seed(0)))
    before, flags, generator = weights(vae), [m.training for m in vae.modules()], torch.get_rng_state()
    recovered = recover(vae, data, 1)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert [m.training for m in vae.modules()] == flags
    assert all(p.grad is None for p in (*vae.parameters(), *recovered.parameters()))
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m.training for m in recovered.modules())
    assert any(not torch.equal(v, before[k]) for k, v in recovered.state_dict().items() if "running_mean" in k)


class Dropping(foreign.OwnVAE):
    """Dropout in the encoder, and a note of the mode it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.modes: list[bool] = []

    def hidden(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.dropout(super().hidden(x))


def test_dropout_is_on_inside_and_off_afterwards() -> None:
    family = foreign.family(Dropping)
    vae = adapt(family.network, family.data)
    vae.network.modes.clear()
    a = recover(vae, family.data, 2, batch_size=60)
    torch.rand(3)
    assert same(a, recover(vae, family.data, 2, batch_size=60))
    assert not vae.network.modes
    assert set(a.network.modes) == {True, False}, "trained in one, measured in the other"
    x = family.x[:5]
    assert torch.equal(a.encode(x).mean, a.encode(x).mean)
    vae.network.dropout.p = 0.0
    assert not same(a, recover(vae, family.data, 2, batch_size=60)), "dropout had no part in it"


def test_what_requires_no_gradient_stays(damaged: DenseVAE, sets: DataSets) -> None:
    damaged.encoder.requires_grad_(False)
    recovered = recover(damaged, sets, 1)
    assert torch.equal(recovered.encoder[0].weight, damaged.encoder[0].weight)
    assert not torch.equal(recovered.decoder[0].weight, damaged.decoder[0].weight)
    assert not recovered.encoder[0].weight.requires_grad


def test_the_seed_decides_and_nothing_else_does(damaged: DenseVAE, sets: DataSets) -> None:
    a, b, c = (recover(damaged, sets, 2, seed=seed) for seed in (0, 0, 1))
    assert same(a, b)
    assert not same(a, c)


# What it goes by


def test_each_step_is_told_with_the_rate_that_falls_to_0(damaged: DenseVAE, sets: DataSets) -> None:
    steps: list[Step] = []
    count = sum(len(x) for (x,) in sets.calibrate.batches(100))
    recover(damaged, sets, 3, learning_rate=0.3, batch_size=100, on_step=steps.append)
    batches = math.ceil(count / 100)
    assert [(s.epoch, s.batch, s.batches) for s in steps] == [
        (epoch, batch, batches) for epoch in (1, 2, 3) for batch in range(1, batches + 1)
    ]
    total = 3 * batches
    np.testing.assert_allclose([s.learning_rate for s in steps], [0.3 * (1 - k / total) for k in range(total)])


RECIPE = Recipe("x", kl="quadratic", beta=0.5, sampling=False, learning_rate=2e-3, batch_size=24).to_json()


def test_the_objective_is_that_of_the_record() -> None:
    assert objective_of(RECIPE) == (Objective("quadratic", 0.5, False), 2e-3, 24)
    assert objective_of({"beta": 2}) == (Objective("full", 2.0), 1e-3, 128)
    assert objective_of(None) == objective_of({}) == (Objective(), 1e-3, 128)
    assert objective_of({"optimiser": "sgd", "beta": 0.5})[0] == Objective("full", 0.5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"beta": "x"}, "training: its record has beta 'x'"),
        ({"beta": True}, "training: its record has beta True"),
        ({"beta": math.nan}, "training: its record has beta nan"),
        ({"beta": 10**400}, "training: its record has beta 1000"),
        ({"beta": -1.0}, "beta: got -1.0, expected a finite number of at least 0"),
        ({"kl": None}, "training: its record has kl None"),
        ({"kl": "half"}, "kl: got 'half', expected full, quadratic or none"),
        ({"sampling": 1}, "training: its record has sampling 1"),
        ({"learning_rate": [1]}, r"training: its record has learning_rate \[1\]"),
        ({"batch_size": 8.0}, "training: its record has batch_size 8.0"),
    ],
)
def test_a_damaged_record_is_one_line_of_error(record: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=f"^{message}"):
        objective_of(record)


def test_a_recorded_beta_is_used(damaged: DenseVAE, sets: DataSets) -> None:
    weighed = {"objective": Objective("quadratic", 0.5, False), "learning_rate": 2e-3, "batch_size": 24}
    expected = recover(damaged, sets, 2, **weighed)
    plain = recover(damaged, sets, 2)
    assert same(recover(damaged, sets, 2, training=RECIPE), expected)
    damaged.provenance = {"training": RECIPE}
    recovered = recover(damaged, sets, 2)
    assert same(recovered, expected)
    assert recovered.provenance == damaged.provenance
    assert not same(recovered, plain)
    assert same(recover(damaged, sets, 2, training={}), plain), "what is given comes before what is recorded"
    given = recover(damaged, sets, 2, objective=Objective(), learning_rate=1e-3, batch_size=128)
    assert same(given, plain)


def test_a_model_folder_tells_how_it_was_trained(tmp_path: Any, damaged: DenseVAE, sets: DataSets) -> None:
    write_model_folder(ModelFolder(damaged, RECIPE), tmp_path / "model")
    assert same(recover(load(tmp_path / "model"), sets, 2), recover(damaged, sets, 2, training=RECIPE))


@pytest.mark.parametrize("provenance", [None, {}, {"training": None}, {"training": "by hand"}, "Paris"])
def test_a_model_that_records_nothing_gets_the_elbo(provenance: Any, damaged: DenseVAE, sets: DataSets) -> None:
    expected = recover(damaged, sets, 1, objective=Objective(), learning_rate=1e-3, batch_size=128)
    damaged.provenance = provenance
    assert same(recover(damaged, sets, 1), expected)


# The rows


class Uncounted:
    """Rows that come from somewhere, each batch in the memory of the last."""

    def __init__(self, x: Tensor, *conditions: Tensor, span: tuple[float, float] | None = None) -> None:
        self.name, self.row_shape, self.count, self.scaled_to = "stream", tuple(x.shape[1:]), None, span
        self._parts = (x, *conditions)

    def batches(self, size: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, ...]]:
        rooms = [torch.empty_like(stored[:7]) for stored in self._parts]
        for start in range(0, len(self._parts[0]), 7):
            parts = [stored[start : start + 7] for stored in self._parts]
            for room, stored in zip(rooms, parts, strict=True):
                room[: len(stored)] = stored
            yield tuple(room[: len(parts[0])] for room in rooms)


@pytest.mark.parametrize("span", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (3.0, -2.5), (0.5, 0.5)])
def test_bytes_are_gathered_as_the_bytes_they_were(span: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (300, 16, 16), generator=generator, dtype=torch.uint8)
    calibrate = part("rows", MemorySource("rows", x), None, 0, None, span).calibrate
    rows = in_memory(calibrate, torch.float32)
    assert rows.tensors[0].dtype == torch.uint8
    assert rows.scaled_to == span
    expected = torch.cat([batch.clone() for (batch,) in calibrate.batches(100)])
    assert torch.equal(next(rows.batches(1000))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_gathered_in_the_type_of_the_model_and_conditions_with_them(dtype: torch.dtype) -> None:
    family = foreign.class_conditional()
    rows = in_memory(family.data.calibrate, dtype)
    x, labels = rows.tensors
    assert (x.dtype, labels.dtype) == (dtype, torch.int64)
    expected = [tuple(t.clone() for t in batch) for batch in family.data.calibrate.batches(50, dtype)]
    assert torch.equal(x, torch.cat([batch[0] for batch in expected]))
    assert torch.equal(labels, torch.cat([batch[1] for batch in expected]))


def test_memory_that_a_stream_uses_again_is_copied() -> None:
    x, c = torch.rand(40, 3), torch.arange(40)
    rows = in_memory(Uncounted(x, c), torch.float32)
    assert torch.equal(rows.tensors[0], x)
    assert torch.equal(rows.tensors[1], c)


def test_rows_in_memory_are_taken_as_they_are() -> None:
    rows = MemoryRows("rows", torch.rand(4, 3))
    assert in_memory(rows, torch.float64) is rows


def test_rows_beyond_the_bound_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, damaged: DenseVAE, sets: DataSets
) -> None:
    assert recovery._MOST_BYTES == 4 * 2**30
    monkeypatch.setattr(recovery, "_MOST_BYTES", 2**10)
    with pytest.raises(DataError) as caught:
        recover(damaged, sets, 1)
    assert str(caught.value) == (
        "data: its calibration rows take more than 9.53674e-07 GiB, too much to train on; "
        "take fewer with --rows, or rows= in open_data"
    )


# What goes wrong


@pytest.mark.parametrize("epochs", [0, -1])
def test_less_than_one_epoch_is_refused(epochs: int, damaged: DenseVAE, sets: DataSets) -> None:
    with pytest.raises(TrainingError, match=f"^epochs: got {epochs}, expected at least 1"):
        recover(damaged, sets, epochs)


def test_nothing_to_train_is_refused(damaged: DenseVAE, sets: DataSets) -> None:
    with pytest.raises(TrainingError) as caught:
        recover(damaged.requires_grad_(False), sets, 1)
    assert str(caught.value) == (
        "recovery: DenseVAE: has no parameter that requires a gradient, so nothing can be trained; "
        "call requires_grad_(True) on what shall be trained"
    )


def test_a_loss_that_is_no_number_names_its_epoch(damaged: DenseVAE, sets: DataSets) -> None:
    before = weights(damaged)
    with pytest.raises(TrainingError) as caught:
        recover(damaged, sets, 2, learning_rate=1e30)
    assert caught.value.message.startswith("recovery: epoch 1")
    assert caught.value.hint == "fine-tune with a lower learning rate"
    assert all(torch.equal(v, before[k]) for k, v in damaged.state_dict().items())
