import contextlib
import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaeprune
from planted import (
    GAUSSIAN,
    PlainVAE,
    assert_untouched,
    convolutional,
    dense,
    held,
    planned,
    rows,
    snapshot,
)
from vaeprune import ranks
from vaeprune.architectures import DenseVAE
from vaeprune.data import MemoryRows, as_data
from vaeprune.errors import ModelError, PlanError, UsageError, VerificationFailed
from vaeprune.evidence import Error, Evidence, Exact, Gate, Sampling, Tolerances
from vaeprune.onnx_export import OnnxErrors, export_onnx
from vaeprune.posterior import VAE
from vaeprune.surgery.cut import cut
from vaeprune.surgery.firing import Fired
from vaeprune.surgery.plan import Plan
from vaeprune.verification import verify

EXACT, DOUBLE, MEAN = "exact", "exact in float64", "mean path"
ELBO, PRIOR = "ELBO loss, upper 95% bound", "prior samples, RMS"
REMOVED = [1, 4]


@pytest.fixture
def original() -> DenseVAE:
    return dense(REMOVED, listening=1e-3)


@pytest.fixture
def made(original: DenseVAE) -> Plan:
    return planned(original, REMOVED)


@pytest.fixture
def smaller(original: DenseVAE, made: Plan) -> VAE:
    return cut(original, made)


def failed(evidence: Evidence) -> list[str]:
    return [gate.name for gate in evidence.failed_gates]


def verify_rows(data: Tensor, seed: int = 0) -> Tensor:
    sets = as_data(data, seed)
    return torch.cat([x for (x,) in sets.verify.batches(64, data.dtype)])


# ---- an honest cut


def test_an_honest_cut_passes_every_gate(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    evidence = verify(original, smaller, rows(), made)
    assert [gate.name for gate in evidence.gates] == [EXACT, DOUBLE, MEAN, ELBO, PRIOR]
    assert evidence.passed
    assert evidence.failed_gates == ()
    assert evidence.exact.max_relative_error <= 1e-5
    assert evidence.exact.float64_max_relative_error <= 1e-10
    assert evidence.n_samples == as_data(rows()).verify.count


def test_an_honest_cut_in_float64_is_exact_to_ten_digits() -> None:
    original = dense(REMOVED, listening=1e-3).double()
    made = planned(original, REMOVED)
    evidence = verify(original, cut(original, made), rows().double(), made)
    assert evidence.passed
    assert evidence.exact.max_relative_error <= 1e-10
    assert next(gate.limit for gate in evidence.gates if gate.name == EXACT) == 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_honest_cut_in_half_precision_passes(dtype: torch.dtype) -> None:
    original = dense(REMOVED, listening=1e-3).to(dtype)
    made = planned(original, REMOVED)
    evidence = verify(original, cut(original, made), rows(), made)
    assert EXACT not in failed(evidence)
    assert evidence.exact.float64_max_relative_error <= 1e-10


def test_an_honest_cut_of_a_convolutional_network_passes_in_train_mode() -> None:
    original = convolutional([1]).train()
    made = planned(original, [1])
    smaller = cut(original, made)
    assert smaller.training
    assert verify(original, smaller, rows(120, original.input_shape), made).passed


def test_a_model_agrees_with_itself(original: DenseVAE) -> None:
    evidence = verify(original, original, rows())
    assert evidence.exact is None
    assert evidence.mean_path == Error(0, 0)
    assert evidence.sampling == Sampling(0, (0, 0))
    assert evidence.prior_samples == Error(0, 0)
    assert evidence.passed


# ---- every gate has a model that fails it


def test_swapped_logvars_fail_the_exact_gate_though_the_mean_path_is_perfect(
    original: DenseVAE, smaller: VAE, made: Plan
) -> None:
    honest = verify(original, smaller, rows(), made)
    with torch.no_grad():
        for parameter in (smaller.logvar_head.weight, smaller.logvar_head.bias):
            parameter[[0, 1]] = parameter[[1, 0]].clone()
    evidence = verify(original, smaller, rows(), made)
    assert EXACT in failed(evidence)
    assert MEAN not in failed(evidence)
    assert evidence.mean_path == honest.mean_path


@pytest.mark.parametrize("layer", ["mean_head", "logvar_head", "output", "decoder.0"])
def test_a_small_change_of_any_layer_fails_the_exact_gate(
    original: DenseVAE, smaller: VAE, made: Plan, layer: str
) -> None:
    with torch.no_grad():
        smaller.get_submodule(layer).bias += 1e-3
    assert EXACT in failed(verify(original, smaller, rows(), made))


def test_a_plan_wrong_in_the_seventh_digit_fails_only_in_float64(original: DenseVAE, made: Plan) -> None:
    wrong = {key: change + 3e-7 for key, change in made.bias_changes.items()}
    made = dataclasses.replace(made, bias_changes=wrong)
    evidence = verify(original, cut(original, made), rows(), made)
    assert failed(evidence) == [DOUBLE]
    assert 1e-10 < evidence.exact.float64_max_relative_error < 1e-5


@pytest.mark.parametrize(("at", "seen"), [(0, True), (130, True), (255, True), (390, False)])
def test_float64_is_compared_on_the_first_few_hundred_rows(at: int, seen: bool) -> None:
    """A plan whose only mistake, in the seventh digit, is in a unit that fires in one row."""
    original = dense([1, 4], likelihood=GAUSSIAN)
    with torch.no_grad():
        for layer in (original.encoder[0], original.mean_head, original.logvar_head):
            layer.weight[0] = layer.bias[0] = 0
        original.encoder[0].weight[0, 0] = 1
        original.mean_head.weight[:, 0] = original.logvar_head.weight[:, 0] = 0
        original.mean_head.weight[0, 0] = 20
        original.logvar_head.bias[0] = -10
        original.decoder[0].weight[0] = 0
        original.decoder[0].weight[0, 0] = 1
        original.decoder[0].bias[0] = -10
    made = planned(original, [1, 4])
    (key,) = (key for key in made.bias_changes if key.startswith("decoder.0"))
    change = made.bias_changes[key].clone()
    change[0] += 3e-7
    wrong = dataclasses.replace(made, bias_changes={**made.bias_changes, key: change})
    x = rows(400)
    x[:, 0] = 0
    x[at, 0] = 1
    sets = dataclasses.replace(as_data(rows()), verify=MemoryRows("verify", x))
    for plan, off in ((made, False), (wrong, seen)):
        evidence = verify(original, cut(original, plan), sets, plan, tolerances=Tolerances(1.0, 1e9))
        assert (DOUBLE in failed(evidence)) is off


def test_a_perturbed_decoder_fails_the_mean_path(original: DenseVAE) -> None:
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.output.bias[3] += 1
    evidence = verify(original, other, rows())
    assert MEAN in failed(evidence)
    assert evidence.exact is None


def test_one_pixel_of_one_row_fails_the_mean_path() -> None:
    """The largest difference counts, not the mean of all."""

    class Spiked(PlainVAE):
        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            out = super().decode_parameters(z)
            out[0, 0] += 0.2
            return out

    original = PlainVAE()
    spiked = Spiked()
    spiked.load_state_dict(original.state_dict())
    evidence = verify(original, spiked, rows(2000, (5,)), tolerances=Tolerances(elbo=1e9))
    assert failed(evidence) == [MEAN]
    assert evidence.mean_path.max_abs_error == pytest.approx(0.2, rel=1e-5)
    assert evidence.mean_path.rms_error < 0.02


def test_blurred_posteriors_fail_only_the_elbo(original: DenseVAE) -> None:
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.logvar_head.bias += 2
    evidence = verify(original, other, rows())
    assert failed(evidence) == [ELBO]
    assert evidence.mean_path == Error(0, 0)
    assert evidence.sampling.elbo_difference > 0.1


def tail_listener() -> DenseVAE:
    """A decoder that hears latent 1 only above 1, where the encoder, sure of itself, never puts it."""
    vae = dense([1])
    with torch.no_grad():
        vae.logvar_head.bias[1] = -10
        vae.decoder[0].weight[0] = 0
        vae.decoder[0].weight[0, 1] = 5
        vae.decoder[0].bias[0] = -5
        vae.output.weight[:, 0] = 3
    return vae


def test_a_decoder_that_hears_a_removed_latent_only_in_prior_samples_fails_only_there() -> None:
    original = tail_listener()
    made = planned(original, [1])
    evidence = verify(original, cut(original, made), rows(), made)
    assert failed(evidence) == [PRIOR]
    assert evidence.mean_path.max_abs_error < 1e-5


def test_a_smaller_model_that_differs_only_at_prior_samples_fails_the_exact_gate() -> None:
    """It hears kept latent 0 above 1, where its posterior never is; the original does not hear it there."""
    original = dense([1])
    with torch.no_grad():
        original.mean_head.weight[0] = original.mean_head.bias[0] = 0
        original.logvar_head.bias[0] = -10
        original.decoder[0].weight[0] = 0
        original.decoder[0].bias[0] = -5
    made = planned(original, [1])
    smaller = cut(original, made)
    with torch.no_grad():
        smaller.decoder[0].weight[0, 0] = 5
    assert failed(verify(original, smaller, rows(), made)) == [EXACT, PRIOR]


def test_nan_fails_every_gate_it_reaches(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    with torch.no_grad():
        smaller.output.bias[0] = math.nan
    evidence = verify(original, smaller, rows(), made)
    assert failed(evidence) == [EXACT, MEAN, ELBO, PRIOR]
    json.dumps(evidence.to_json(), allow_nan=False)


def test_nan_of_the_original_fails_too(original: DenseVAE, made: Plan) -> None:
    smaller = cut(original, made)
    with torch.no_grad():
        original.output.bias[0] = math.nan
    assert not verify(original, smaller, rows()).passed
    assert {MEAN, ELBO} <= set(failed(verify(original, original, rows())))


# ---- figures against an oracle


def two_models() -> tuple[DenseVAE, DenseVAE]:
    first, second = (dense([1], seed=seed).double() for seed in (0, 1))
    return first, second


def test_mean_path_is_decode_of_the_means() -> None:
    a, b = two_models()
    data = rows(700).double()
    x = verify_rows(data)
    with torch.no_grad():
        expected = a.decode(a.encode(x).mean)
        difference = (expected - b.decode(b.encode(x).mean)).abs().numpy()
    evidence = verify(a, b, data)
    assert evidence.n_samples == len(x)
    assert evidence.mean_path.max_abs_error == pytest.approx(difference.max(), rel=1e-12)
    assert evidence.mean_path.rms_error == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-12)
    assert evidence.output_range == pytest.approx((expected.max() - expected.min()).item(), rel=1e-12)
    gate = next(gate for gate in evidence.gates if gate.name == MEAN)
    assert gate.measured == pytest.approx(difference.max() / evidence.output_range, rel=1e-12)


def test_elbo_difference_of_sharp_posteriors_is_that_of_their_means() -> None:
    """Where sigma is e^-30 the sample is the mean, and the ELBO needs no luck."""
    a, b = two_models()
    with torch.no_grad():
        for vae in (a, b):
            vae.logvar_head.weight.zero_()
            vae.logvar_head.bias.fill_(-60)
    data = rows(700).double()
    x = verify_rows(data)
    losses = []
    with torch.no_grad():
        for vae in (b, a):
            p = vae.encode(x)
            nats = vae.likelihood.nats(x, vae.decode_parameters(p.mean))
            losses.append(nats + 0.5 * (p.mean**2 + p.logvar.exp() - p.logvar - 1).sum(1))
    difference = (losses[0] - losses[1]).numpy()
    reach = 1.959963985 * difference.std(ddof=1) / math.sqrt(len(x))
    sampling = verify(a, b, data).sampling
    assert sampling.elbo_difference == pytest.approx(difference.mean(), rel=1e-9)
    assert sampling.ci95 == pytest.approx((difference.mean() - reach, difference.mean() + reach), rel=1e-6)


def test_cutting_latents_nobody_reads_gains_their_kl_and_no_noise() -> None:
    """The kept latents get the same noise in both models, so the difference is −½·0.03² a latent, in every row."""
    original = dense(REMOVED).double()
    made = planned(original, REMOVED)
    sampling = verify(original, cut(original, made), rows().double(), made).sampling
    assert sampling.elbo_difference == pytest.approx(-(0.03**2), rel=1e-6)
    assert sampling.ci95 == pytest.approx((-(0.03**2), -(0.03**2)), rel=1e-6)


def test_prior_samples_of_a_linear_decoder_differ_by_the_removed_column() -> None:
    reader = nn.Linear(4, 5)
    original = PlainVAE(reader).double()
    made = planned(original, [2])
    column = reader.weight.detach()[:, 2].square().mean().sqrt().item()
    (removal,) = made.removals
    evidence = verify(original, cut(original, made), rows(6000, (5,)).double(), made)
    assert evidence.prior_samples.rms_error == pytest.approx(column * math.sqrt(1 + removal.constant**2), rel=0.1)
    assert evidence.prior_samples.max_abs_error >= evidence.prior_samples.rms_error


def test_exact_compares_with_the_original_held_at_the_constants() -> None:
    """A removed latent with a mean of its own moves the mean path and leaves the exact comparison alone."""
    original = dense([1]).double()
    made = planned(original, [0])
    smaller = cut(original, made)
    evidence = verify(original, smaller, rows().double(), made)
    assert evidence.exact.max_relative_error <= 1e-10
    x = verify_rows(rows().double())
    with torch.no_grad():
        p = original.encode(x)
        held_at = original.likelihood.mean(held(original, made, p.mean))
        expected = (original.decode(p.mean) - held_at).abs().max().item()
    assert expected > 1e-3
    assert evidence.mean_path.max_abs_error == pytest.approx(expected, rel=1e-9)


def test_tolerances_move_the_limits(original: DenseVAE) -> None:
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.output.bias += 0.5
    wide = verify(original, other, rows(), tolerances=Tolerances(output=1.0, elbo=100.0))
    tight = verify(original, other, rows(), tolerances=Tolerances(output=1e-6, elbo=0.0))
    assert wide.passed
    assert failed(tight) == [MEAN, ELBO, PRIOR]
    assert [gate.limit for gate in wide.gates] == [1.0, 100.0, 1.0]
    assert verify(original, original, rows(), tolerances=Tolerances(0.0, 0.0, 0.0)).passed


# ---- with and without a plan


def test_without_a_plan_nothing_is_exact(original: DenseVAE, smaller: VAE) -> None:
    same_size = verify(original, copy.deepcopy(original), rows())
    assert same_size.exact is None
    assert same_size.prior_samples is not None
    other_size = verify(original, smaller, rows())
    assert (other_size.exact, other_size.prior_samples) == (None, None)
    assert [gate.name for gate in other_size.gates] == [MEAN, ELBO]


def test_the_seed_of_the_plan_parts_the_rows(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    counts = {seed: as_data(rows(), seed).verify.count for seed in range(8)}
    seed = next(seed for seed, count in counts.items() if count != counts[0])
    made = dataclasses.replace(made, data={**made.data, "seed": seed})
    assert verify(original, smaller, rows(), made).n_samples == counts[seed]


def test_evidence_comes_from_the_verify_rows_alone(original: DenseVAE) -> None:
    sets = as_data(rows())
    broken = dataclasses.replace(sets, calibrate=None, select=None)
    assert verify(original, original, broken).n_samples == sets.verify.count


def test_models_in_the_wrong_order_are_refused(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    with pytest.raises(ModelError) as error:
        verify(smaller, original, rows(), made)
    assert str(error.value) == (
        "models: have 4 and 6 latents, the plan leads from 6 to 4; "
        "name the model the plan was made for first and the one it led to second"
    )


def test_neither_model_is_changed(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    original.train()
    smaller.train()
    smaller.decoder.eval()
    original.output.bias.grad = torch.ones_like(original.output.bias)
    before = snapshot(original), snapshot(smaller)
    verify(original, smaller, rows(), made)
    assert_untouched(original, before[0])
    assert_untouched(smaller, before[1])


def test_evidence_is_the_same_each_time(original: DenseVAE, smaller: VAE, made: Plan) -> None:
    assert verify(original, smaller, rows(), made) == verify(original, smaller, rows(), made)


# ---- several ranks


@pytest.mark.parametrize("mine", [0, 1])
def test_each_of_two_ranks_finds_what_one_finds(monkeypatch: pytest.MonkeyPatch, mine: int) -> None:
    """Three batches: the first and the last are one rank's, the second is the other's."""
    original = dense(REMOVED, listening=1e-3, likelihood=GAUSSIAN).double()
    made = planned(original, REMOVED)
    smaller, other = cut(original, made), dense(seed=1, likelihood=GAUSSIAN).double()
    with torch.no_grad():
        smaller.mean_head.weight += 1e-3 * torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    x = rows(1100).double()
    x[600] *= 3  # the largest differences are those of the second batch, then those of the third
    x[1050] *= 2
    sets = dataclasses.replace(as_data(rows().double()), verify=MemoryRows("verify", x))

    def figures(b: VAE, plan: Plan | None) -> list[float]:
        evidence = verify(original, b, sets, plan)
        parts = (evidence.exact, evidence.mean_path, evidence.prior_samples)
        found = [value for part in parts if part for value in dataclasses.asdict(part).values()]
        return [*found, evidence.output_range, evidence.sampling.elbo_difference, *evidence.sampling.ci95]

    pairs = [(smaller, made), (other, None), (smaller, None)]
    alone = [figures(*pair) for pair in pairs]
    monkeypatch.setattr(ranks, "world", lambda: 2)
    for pair, expected in zip(pairs, alone, strict=True):
        left: list[object] = []
        monkeypatch.setattr(ranks, "rank", lambda: 1 - mine)

        def leave(own: object, left: list[object] = left) -> None:
            left.append(own)
            raise InterruptedError

        monkeypatch.setattr(ranks, "gathered", leave)
        with contextlib.suppress(InterruptedError):
            figures(*pair)
        monkeypatch.setattr(ranks, "rank", lambda: mine)
        both = {0: lambda own, left=left: [own, *left], 1: lambda own, left=left: [*left, own]}
        monkeypatch.setattr(ranks, "gathered", both[mine])
        assert figures(*pair) == pytest.approx(expected, rel=1e-9)


# ---- ONNX files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseVAE, Path]:
    vae = dense([1])
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(vae, folder)
    return vae, folder


def test_files_of_a_model_pass_beside_it(exported: tuple[DenseVAE, Path]) -> None:
    vae, folder = exported
    evidence = verify(vae, vae, rows(), onnx=folder)
    assert [gate.name for gate in evidence.gates][-2:] == ["ONNX encoder", "ONNX decoder"]
    assert evidence.passed
    assert evidence.onnx.encoder_range > 0


@pytest.mark.parametrize(
    ("layers", "gates"),
    [
        (["mean_head"], ["ONNX encoder"]),
        (["logvar_head"], ["ONNX encoder"]),
        (["output"], ["ONNX decoder"]),
        (["encoder.0", "decoder.0"], ["ONNX encoder", "ONNX decoder"]),
    ],
    ids=str,
)
def test_files_of_another_model_fail(exported: tuple[DenseVAE, Path], layers: list[str], gates: list[str]) -> None:
    vae, folder = exported
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for layer in layers:
            other.get_submodule(layer).bias += 0.01
    assert failed(verify(other, other, rows(), onnx=folder)) == gates


# ---- the records


EVIDENCE = Evidence(
    80,
    0.9,
    Exact(1e-7, 2e-7, 3e-15),
    Error(0.01, 0.001),
    Sampling(-0.5, (-0.6, -0.4)),
    Error(0.02, 0.002),
    OnnxErrors(1e-6, 2e-6, 3.0, 0.9),
    (Gate(EXACT, 2e-7, 1e-5), Gate(MEAN, 0.011, 0.02)),
)


@pytest.mark.parametrize(
    "evidence",
    [
        EVIDENCE,
        dataclasses.replace(EVIDENCE, exact=None, prior_samples=None, onnx=None),
        dataclasses.replace(EVIDENCE, exact=Exact(1e-7, 2e-7, None)),
        dataclasses.replace(EVIDENCE, fired=(Fired("encoder.0.weight", 3, 1, 0.05, math.inf),)),
        dataclasses.replace(
            EVIDENCE,
            sampling=Sampling(math.inf, (-math.inf, math.inf)),
            onnx=OnnxErrors(math.inf, 0.0, 1.0, 1.0),
            gates=(Gate(ELBO, math.inf, 0.1),),
        ),
    ],
    ids=["all", "what was not measured", "no float64", "a channel that fired", "infinities"],
)
def test_evidence_survives_json(evidence: Evidence) -> None:
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json(), allow_nan=False))) == evidence


def test_evidence_with_nan_survives_json() -> None:
    nan = math.nan
    broken = Evidence(80, nan, Exact(nan, nan, nan), Error(nan, nan), Sampling(nan, (nan, nan)), None, None, ())
    broken = dataclasses.replace(broken, gates=(Gate(MEAN, nan, 0.02),))
    found = Evidence.from_json(json.loads(json.dumps(broken.to_json(), allow_nan=False)))
    assert not found.passed
    figures = (found.output_range, found.exact.max_abs_error, found.mean_path.rms_error, *found.sampling.ci95)
    assert all(isinstance(figure, float) and math.isnan(figure) for figure in figures)


def test_json_keeps_to_the_contract() -> None:
    entry = EVIDENCE.to_json()
    assert {"passed", "n_samples", "exact", "mean_path", "sampling", "prior_samples", "onnx"} <= entry.keys()
    assert {"max_abs_error", "max_relative_error"} <= entry["exact"].keys()
    assert entry["mean_path"].keys() == entry["prior_samples"].keys() == {"max_abs_error", "rms_error"}
    assert entry["sampling"] == {"elbo_difference": -0.5, "ci95": [-0.6, -0.4]}
    assert {"encoder_max_abs_error", "decoder_max_abs_error"} <= entry["onnx"].keys()
    assert entry["passed"] is True
    assert entry["gates"][0] == {"name": EXACT, "measured": 2e-7, "limit": 1e-5, "passed": True}


def test_a_gate_is_passed_at_its_limit_and_never_by_a_nan() -> None:
    assert Gate(MEAN, 0.02, 0.02).passed
    assert not Gate(MEAN, math.nextafter(0.02, 1), 0.02).passed
    assert not Gate(MEAN, math.nan, 0.02).passed


def test_a_failure_says_which_gates_failed_and_by_how_much() -> None:
    gates = (Gate(EXACT, 0.5, 1e-5), Gate(MEAN, 0.01, 0.02), Gate(ELBO, 3.14159, 0.1))
    error = VerificationFailed(dataclasses.replace(EVIDENCE, gates=gates))
    assert str(error) == (
        "verification failed: exact 0.5 > 1e-05, ELBO loss, upper 95% bound 3.14 > 0.1; nothing was written; keep the "
        "latents concerned with --keep, or give the gate a wider tolerance"
    )
    assert error.evidence.gates == gates
    assert error.result is None


@pytest.mark.parametrize("name", ["output", "elbo", "onnx"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_tolerance_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError) as error:
        Tolerances(**{name: value})
    assert str(error.value) == f"tolerance {name}: got {value}, expected a finite number of at least 0"


def test_rows_split_by_another_seed_than_the_plans_are_refused() -> None:
    torch.manual_seed(0)
    vae, x = DenseVAE([6], [5], [5], 3), torch.rand(300, 6)
    made = vaeprune.plan(vae, vaeprune.analyze(vae, x, ablate="none"), x, remove=[1], keep=[0, 2])
    small = vaeprune.cut(vae, made)
    assert vaeprune.verify(vae, small, as_data(x, seed=0), made).exact is not None
    with pytest.raises(PlanError) as caught:
        vaeprune.verify(vae, small, as_data(x, seed=1), made)
    assert caught.value.message == "data: are split by seed 1, the plan was made with seed 0"
