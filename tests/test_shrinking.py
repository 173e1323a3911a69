import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planted import (
    BERNOULLI,
    GAUSSIAN,
    PlainVAE,
    assert_untouched,
    convolutional,
    dense,
    planned,
    randomise,
    rows,
    snapshot,
)
from vaeprune import shrinking
from vaeprune.analysis import analyze
from vaeprune.architectures import BuiltVAE, DenseVAE
from vaeprune.data import as_data
from vaeprune.errors import DataError, ModelError, PlanError, StorageError, VerificationFailed
from vaeprune.evidence import Evidence, Tolerances
from vaeprune.model_folder import ModelFolder, load, write_model_folder
from vaeprune.shrinking import Shrunk, shrink
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import read_plan
from vaeprune.surgery.planning import plan
from vaeprune.verification import verify

FILES = [
    "README.md",
    "analysis.json",
    "config.json",
    "decoder.onnx",
    "encoder.onnx",
    "evidence.json",
    "model.safetensors",
    "plan.json",
    "plan.safetensors",
]


def weights(vae: BuiltVAE) -> int:
    return sum(value.numel() for value in vae.state_dict().values() if value.is_floating_point())


# ---- on any network, exactly what is idle goes


@st.composite
def networks(draw: st.DrawFn) -> tuple[DenseVAE, list[int]]:
    """A dense network of any sizes, and what is planted idle in it: nothing, something, but not all."""
    latents = draw(st.integers(1, 7))
    idle = draw(st.sets(st.integers(0, latents - 1), max_size=latents - 1))
    widths = st.lists(st.integers(2, 12), min_size=1, max_size=3)
    vae = dense(
        idle,
        latents,
        input_shape=draw(st.sampled_from([(5,), (1, 3, 4), (9,)])),
        encoder=draw(widths),
        decoder=draw(widths),
        likelihood=draw(st.sampled_from([BERNOULLI, GAUSSIAN])),
        listening=draw(st.sampled_from([0.0, 1e-4])),
        seed=draw(st.integers(0, 10_000)),
    )
    return vae.to(draw(st.sampled_from([torch.float32, torch.float64]))), sorted(idle)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(network=networks())
def test_shrink_takes_out_exactly_the_planted_latents(network: tuple[DenseVAE, list[int]]) -> None:
    vae, idle = network
    before = snapshot(vae)
    result = shrink(vae, rows(300, vae.input_shape), scope="latents")
    assert_untouched(vae, before)
    assert result.latent_size == (vae.latent_size, vae.latent_size - len(idle))
    if not idle:
        assert (result.model, result.plan, result.evidence) == (None, None, None)
        assert result.parameters == (weights(vae), weights(vae))
        return
    assert result.plan.removed_latents == idle == result.analysis.indices("inactive")
    assert result.evidence.passed
    assert result.evidence.exact.float64_max_relative_error <= 1e-10
    assert result.parameters == (weights(vae), weights(result.model))
    reader, heads = (vae.decoder[0].out_features, vae.mean_head.in_features)
    assert weights(vae) - weights(result.model) == len(idle) * (reader + 2 * (heads + 1))


@settings(max_examples=2, derandomize=True, deadline=None)
@given(idle=st.sets(st.integers(0, 3), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_shrink_takes_exactly_the_planted_latents_out_of_a_convolutional_network(idle: set[int], seed: int) -> None:
    vae = convolutional(idle, 4, listening=1e-4, seed=seed)
    before = snapshot(vae)
    result = shrink(vae, rows(160, vae.input_shape), scope="latents")
    assert_untouched(vae, before)
    assert result.plan.removed_latents == sorted(idle)
    assert result.evidence.passed


# ---- the folder


@pytest.fixture(scope="module")
def original() -> DenseVAE:
    vae = dense([1, 4], listening=1e-4, input_shape=(1, 3, 4))
    vae.provenance = {"training": {"data": "noise", "kl": "full"}, "shrunk": None}
    return vae


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return rows(400, (1, 3, 4))


@pytest.fixture(scope="module")
def shrunk(original: DenseVAE, data: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    out = tmp_path_factory.mktemp("shrunk") / "deep" / "small"
    return shrink(original, data, out, source="models/noise")


def test_the_folder_holds_the_model_its_plan_its_evidence_and_the_files_to_deploy(shrunk: Shrunk) -> None:
    assert sorted(path.name for path in shrunk.out.iterdir()) == FILES
    assert list(shrunk.out.parent.iterdir()) == [shrunk.out]


def test_the_model_in_the_folder_is_the_model_returned(shrunk: Shrunk, data: torch.Tensor) -> None:
    found = load(shrunk.out)
    assert found.architecture() == shrunk.model.architecture()
    expected = shrunk.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found.encode(data).logvar, shrunk.model.eval().encode(data).logvar)


def test_the_plan_in_the_folder_makes_the_model_in_it_bit_for_bit(original: DenseVAE, shrunk: Shrunk) -> None:
    again = cut(original, read_plan(shrunk.out)).state_dict()
    expected = load(shrunk.out).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.items())


def test_the_evidence_in_the_folder_is_the_evidence_returned_and_can_be_had_again(
    original: DenseVAE, shrunk: Shrunk, data: torch.Tensor
) -> None:
    written = json.loads((shrunk.out / "evidence.json").read_text())
    assert Evidence.from_json(written) == shrunk.evidence
    assert written["passed"] is True
    assert [gate["name"] for gate in written["gates"]][-2:] == ["ONNX encoder", "ONNX decoder"]
    again = verify(original, load(shrunk.out), data, read_plan(shrunk.out), onnx=shrunk.out)
    assert again.passed
    assert again.mean_path == shrunk.evidence.mean_path


def test_the_onnx_files_in_the_folder_are_those_of_the_small_model(shrunk: Shrunk, data: torch.Tensor) -> None:
    for count in (1, 33):
        encoder = onnxruntime.InferenceSession(shrunk.out / "encoder.onnx", providers=["CPUExecutionProvider"])
        mu, _ = encoder.run(None, {"x": data[:count].numpy()})
        with torch.no_grad():
            expected = load(shrunk.out).encode(data[:count]).mean.numpy()
        assert mu.shape == (count, 4)
        np.testing.assert_allclose(mu, expected, atol=1e-5)


def test_the_config_records_where_the_model_comes_from(shrunk: Shrunk) -> None:
    config = json.loads((shrunk.out / "config.json").read_text())
    assert config["training"] == {"data": "noise", "kl": "full"}
    entry = config["shrunk"]
    assert (entry["source"], entry["latent_size"], entry["kept_latents"]) == ("models/noise", 6, [0, 2, 3, 5])
    assert re.fullmatch(r"[0-9a-f]{64}", entry["plan_sha256"])
    assert entry["before"] is None
    assert shrunk.model.provenance["shrunk"] == load(shrunk.out).provenance["shrunk"] == entry
    assert shrunk.model.provenance["training"] == config["training"]


def test_the_card_tells_what_was_removed_and_how_it_was_checked(shrunk: Shrunk) -> None:
    card = (shrunk.out / "README.md").read_text()
    sizes = f"{shrunk.parameters[0]} to {shrunk.parameters[1]} weights, 6 to 4 latents"
    assert card.startswith(f"# Shrunk from models/noise: {sizes}\n")
    assert "Removed: latents 1, 4." in card
    assert "latents 0, 2, 3, 5 of the original" in card
    assert f"Verified on {shrunk.evidence.n_samples} rows" in card
    assert all(f"| {gate.name} | {gate.measured:.3g} | {gate.limit:.3g} |" in card for gate in shrunk.evidence.gates)


def test_json_keeps_to_the_contract(shrunk: Shrunk, original: DenseVAE) -> None:
    entry = json.loads(json.dumps(shrunk.to_json(), allow_nan=False))
    assert entry["out"] == str(shrunk.out)
    assert entry["latent_size"] == {"before": 6, "after": 4}
    assert entry["parameters"] == {"before": weights(original), "after": weights(shrunk.model)}
    assert entry["removed_latents"] == [1, 4]
    assert entry["evidence"] == shrunk.evidence.to_json()
    assert entry["advice"]["action"] == "shrink"


def test_a_shrunk_model_is_kept_as_it_is(shrunk: Shrunk, data: torch.Tensor, tmp_path: Path) -> None:
    again = shrink(load(shrunk.out), data, tmp_path / "smaller")
    assert again.model is None
    assert again.analysis.advice.action == "keep"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_shrunk_twice_records_both(shrunk: Shrunk, data: torch.Tensor, tmp_path: Path) -> None:
    tolerances = Tolerances(output=10.0, elbo=1e6)
    shrink(load(shrunk.out), data, tmp_path / "smaller", remove=[2], tolerances=tolerances)
    entry = json.loads((tmp_path / "smaller" / "config.json").read_text())["shrunk"]
    assert (entry["latent_size"], entry["kept_latents"]) == (4, [0, 1, 3])
    assert entry["before"] == json.loads((shrunk.out / "config.json").read_text())["shrunk"]


# ---- nothing to do


def test_nothing_idle_writes_nothing_and_advises(tmp_path: Path) -> None:
    result = shrink(dense([]), rows(), tmp_path / "out")
    assert (result.model, result.plan, result.evidence, result.out) == (None, None, None, None)
    assert result.latent_size == (6, 6)
    assert result.analysis.advice.action in ("grow", "keep")
    entry = result.to_json()
    assert (entry["out"], entry["removed_latents"], entry["evidence"]) == (None, [], None)
    assert list(tmp_path.iterdir()) == []


def test_a_collapsed_model_is_diagnosed_and_not_cut(tmp_path: Path) -> None:
    result = shrink(dense(range(6)), rows(), tmp_path / "out")
    assert result.model is None
    assert result.analysis.advice.action == "retrain"
    assert list(tmp_path.iterdir()) == []


def test_keeping_all_that_is_idle_leaves_nothing_to_do() -> None:
    result = shrink(dense([1, 4]), rows(), keep=[1, 4])
    assert (result.model, result.plan) == (None, None)


def test_a_dry_run_stops_at_the_plan(tmp_path: Path) -> None:
    vae = dense([1, 4])
    (tmp_path / "there").mkdir()
    result = shrink(vae, rows(), tmp_path / "there", dry_run=True)
    assert result.plan.removed_latents == [1, 4]
    assert (result.model, result.evidence, result.out) == (None, None, None)
    assert result.latent_size == (6, 4)
    assert result.parameters[0] == weights(vae) > result.parameters[1]
    assert list((tmp_path / "there").iterdir()) == []


# ---- wishes


def test_keep_and_remove_overrule_verdicts() -> None:
    wide = Tolerances(output=100.0, elbo=1e6)
    result = shrink(dense([1, 4]), rows(), keep=[4], remove=[3], tolerances=wide)
    assert result.plan.removed_latents == [1, 3]
    assert result.latent_size == (6, 4)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"keep": [9]}, "keep: got latents [9], the model has 0 to 5; see `vaeprune analyze`"),
        ({"remove": [-1]}, "remove: got latents [-1], the model has 0 to 5; see `vaeprune analyze`"),
        ({"keep": [2], "remove": [2]}, "latents [2] are both to be kept and to be removed"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wishes: dict[str, list[int]], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as error:
        shrink(dense([1, 4]), rows(), tmp_path / "out", **wishes)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


# ---- replaying a plan


def test_a_replayed_plan_gives_the_same_weights_bit_for_bit() -> None:
    vae = dense([1, 4], listening=1e-4)
    first = shrink(vae, rows())
    again = shrink(vae, rows(), replay=first.plan)
    assert again.analysis is None
    assert again.evidence == first.evidence
    expected = first.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.model.state_dict().items())


def test_a_replayed_plan_is_verified_on_the_rows_of_its_own_seed() -> None:
    vae = dense([1, 4])
    made = planned(vae, [1, 4])
    counts = {seed: as_data(rows(), seed).verify.count for seed in range(8)}
    seed = next(seed for seed, count in counts.items() if count != counts[0])
    made.data["seed"] = seed
    assert shrink(vae, rows(), replay=made).evidence.n_samples == counts[seed]


def test_a_plan_for_other_weights_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    made = planned(dense([1, 4]), [1, 4])
    with pytest.raises(PlanError, match="made for other weights"):
        shrink(dense([1, 4], seed=1), rows(), tmp_path / "out", replay=made)
    assert list(tmp_path.iterdir()) == []


# ---- a gate that fails


def tail_listener() -> DenseVAE:
    """Latent 1 is heard by the decoder only above 1, where the encoder never puts it."""
    vae = dense([1])
    with torch.no_grad():
        vae.logvar_head.bias[1] = -10
        vae.decoder[0].weight[0] = 0
        vae.decoder[0].weight[0, 1] = 5
        vae.decoder[0].bias[0] = -5
        vae.output.weight[:, 0] = 3
    return vae


@pytest.mark.parametrize("written", [False, True], ids=["no folder asked for", "a folder asked for"])
def test_a_failed_gate_leaves_nothing_and_tells_everything(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = tail_listener()
    if written:  # what the files compute is tested elsewhere; here they only have to disappear
        monkeypatch.setattr(shrinking, "export_onnx", lambda _, folder: (folder / "encoder.onnx").write_bytes(b""))
        monkeypatch.setattr("vaeprune.verification.onnx_errors", lambda *_: None)
    before = snapshot(vae)
    with pytest.raises(VerificationFailed) as error:
        shrink(vae, rows(), tmp_path / "out" if written else None, remove=[1])
    assert_untouched(vae, before)
    failed = error.value.evidence.failed_gates
    assert [gate.name for gate in failed] == ["prior samples, RMS"]
    assert str(error.value).startswith(f"verification failed: prior samples, RMS {failed[0].measured:.3g} > 0.02;")
    result = error.value.result
    assert result.model is None
    assert result.out is None
    assert result.plan.removed_latents == [1]
    assert result.evidence is error.value.evidence
    assert result.analysis.latents[1].verdict == "mixed"
    assert result.latent_size == (6, 5)
    assert result.to_json()["evidence"]["passed"] is False
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_keeps_the_folder_that_force_would_have_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "export_onnx", lambda *_: None)
    monkeypatch.setattr("vaeprune.verification.onnx_errors", lambda *_: None)
    out = tmp_path / "out"
    write_model_folder(ModelFolder(dense([], seed=3)), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(VerificationFailed):
        shrink(tail_listener(), rows(), out, remove=[1], force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_wider_tolerance_lets_it_through() -> None:
    assert shrink(tail_listener(), rows(), remove=[1], tolerances=Tolerances(output=1.0)).evidence.passed


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the exporter broke")

    monkeypatch.setattr(shrinking, "export_onnx", fail)
    with pytest.raises(RuntimeError, match="the exporter broke"):
        shrink(dense([1, 4]), rows(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- what is in the way, and what cannot be used


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "analyze", None)
    with pytest.raises(StorageError) as error:
        shrink(dense([1]), rows(), tmp_path)
    assert str(error.value) == f"{tmp_path}: already exists; choose another name or pass --force to replace it"


def test_weights_that_are_not_finite_are_refused_before_anything_is_cut() -> None:
    vae = dense([1, 4])
    with torch.no_grad():
        vae.mean_head.weight[3, 0] = math.nan
    with pytest.raises(DataError, match="first for latent 3"):
        shrink(vae, rows())


@pytest.mark.parametrize("written", [False, True], ids=["no folder asked for", "a folder asked for"])
def test_a_class_with_the_protocol_of_its_own_is_refused_before_any_work(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "analyze", None)
    with pytest.raises(ModelError) as error:
        shrink(PlainVAE(), rows(400, (5,)), tmp_path / "out" if written else None)
    assert str(error.value) == (
        "PlainVAE: has the VAE protocol of its own, so no folder can be written that loads again; "
        "use analyze, plan, cut and verify, which take it as it is"
    )
    assert list(tmp_path.iterdir()) == []


def test_such_a_class_goes_the_same_way_step_by_step() -> None:
    vae = PlainVAE()
    with torch.no_grad():
        vae.mean.weight[2] = vae.logvar.weight[2] = vae.logvar.bias[2] = 0
        vae.decoder[0].weight[:, 2] = 0
        vae.logvar.bias[[0, 1, 3]] -= 3
    before, data = snapshot(vae), rows(400, (5,))
    made = plan(vae, analyze(vae, data), data)
    smaller = cut(vae, made)
    evidence = verify(vae, smaller, data, made)
    assert_untouched(vae, before)
    assert made.removed_latents == [2]
    assert (type(smaller), smaller.latent_size) == (PlainVAE, 3)
    assert evidence.passed
    assert evidence.exact.float64_max_relative_error <= 1e-10


class Theirs(nn.Module):
    """A VAE without the protocol, as in PyTorch's examples."""

    def __init__(self, latent_dim: int = 3) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(12, 9), nn.Linear(9, latent_dim), nn.Linear(9, latent_dim)
        self.fc3, self.fc4 = nn.Linear(latent_dim, 9), nn.Linear(9, 12)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def test_somebody_elses_model_is_shrunk_and_stays_theirs() -> None:
    theirs = Theirs()
    randomise(theirs, 0)
    with torch.no_grad():
        theirs.fc21.weight[1] = theirs.fc22.weight[1] = theirs.fc22.bias[1] = 0
        theirs.fc3.weight[:, 1] = 0
        theirs.fc22.bias[[0, 2]] -= 3
    before = snapshot(theirs)
    result = shrink(theirs, rows())
    assert_untouched(theirs, before)
    assert result.plan.removed_latents == [1]
    assert result.evidence.passed
    small = Theirs(latent_dim=2)
    small.load_state_dict(result.model.network.state_dict())
    x = rows(20)
    with torch.no_grad():
        torch.testing.assert_close(small.encode(x)[0], theirs.encode(x)[0][:, [0, 2]], rtol=0, atol=1e-6)
