import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn

from planted import IDLE_MEAN, PlainVAE, convolutional, dense, planned, rows
from vaeprune.analysis import Analysis, analyze
from vaeprune.architectures import DenseVAE
from vaeprune.data import as_data
from vaeprune.errors import PlanError, TraceError, VaepruneError
from vaeprune.storage import weights_sha256
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.planning import plan, refuse_other_values

IDLE = [1, 4]


@pytest.fixture(scope="module")
def vae() -> DenseVAE:
    return dense(IDLE, listening=1e-3)


@pytest.fixture(scope="module")
def analysis(vae: DenseVAE) -> Analysis:
    return analyze(vae, rows(), seed=5)


def kept(made: Plan) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(part.key, part.axis): part.kept for part in made.slices}


# ---- what goes


@pytest.mark.parametrize(
    ("keep", "remove", "removed"),
    [
        ((), (), [1, 4]),
        ((1,), (), [4]),
        ((0, 1, 2), (), [4]),
        ((), (3,), [1, 3, 4]),
        ((), (1,), [1, 4]),
        ((1, 4), (5, 0), [0, 5]),
        ((), (4, 3, 2, 0), [0, 1, 2, 3, 4]),
    ],
)
def test_inactive_latents_go_less_what_is_kept_and_more_what_is_removed(
    vae: DenseVAE, analysis: Analysis, keep: tuple[int, ...], remove: tuple[int, ...], removed: list[int]
) -> None:
    made = plan(vae, analysis, rows(), keep=keep, remove=remove)
    assert made.removed_latents == removed
    assert made.kept_latents == [i for i in range(6) if i not in removed]
    assert kept(made)["mean_head.weight", 0] == tuple(made.kept_latents)


@pytest.mark.parametrize("name", ["keep", "remove"])
def test_wishes_for_latents_that_do_not_exist_are_refused(vae: DenseVAE, analysis: Analysis, name: str) -> None:
    with pytest.raises(PlanError) as error:
        plan(vae, analysis, rows(), **{name: [6, 2, -1]})
    assert str(error.value) == f"{name}: got latents [-1, 6], the model has 0 to 5; see `vaeprune analyze`"


def test_a_latent_cannot_be_kept_and_removed(vae: DenseVAE, analysis: Analysis) -> None:
    with pytest.raises(PlanError) as error:
        plan(vae, analysis, rows(), keep=[3, 2, 0], remove=[2, 3])
    assert str(error.value) == "latents [2, 3] are both to be kept and to be removed"


def test_one_latent_must_stay(vae: DenseVAE, analysis: Analysis) -> None:
    with pytest.raises(PlanError) as error:
        plan(vae, analysis, rows(), remove=[0, 2, 3, 5])
    assert error.value.message == "all 6 latents would go, at least one must stay"
    assert error.value.hint == analysis.advice.reason


def test_keeping_every_inactive_latent_leaves_nothing_to_cut(vae: DenseVAE, analysis: Analysis) -> None:
    with pytest.raises(PlanError) as error:
        plan(vae, analysis, rows(), keep=IDLE)
    assert error.value.message == "nothing to cut: no latent is inactive"
    assert error.value.hint == analysis.advice.reason


def test_a_network_with_nothing_idle_makes_no_plan() -> None:
    vae = dense(idle=[])
    with pytest.raises(PlanError, match="nothing to cut: no latent is inactive"):
        plan(vae, analyze(vae, rows()), rows())


def test_a_collapsed_network_makes_no_plan() -> None:
    vae = dense(idle=range(6))
    analysis = analyze(vae, rows())
    with pytest.raises(PlanError) as error:
        plan(vae, analysis, rows())
    assert analysis.advice.action == "retrain"
    assert error.value.hint == analysis.advice.reason


def test_an_analysis_of_a_model_with_other_latents_is_refused(analysis: Analysis) -> None:
    for latents in (5, 8):
        with pytest.raises(VaepruneError) as error:
            plan(dense([1], latents=latents), analysis, rows())
        assert re.search(rf"\b{latents} latents\b", str(error.value))
        assert re.search(r"\b6\b", str(error.value))


@pytest.mark.parametrize(("latents", "named"), [(8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0, 1, 2, 3, 4, 5, 6, 7 …")])
def test_of_many_latents_that_cannot_be_taken_apart_the_first_eight_are_named(latents: int, named: str) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(1, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.read(z.sum(1, keepdim=True))

    with pytest.raises(TraceError) as error:
        planned(PlainVAE(Summed(), latents), [0])
    assert error.value.message == (
        f"decoder.read.weight: column 0 serves latents {named} together, which cannot be taken apart"
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_values_are_the_same_to_within_a_hundredth_of_the_largest(scale: float) -> None:
    reference = scale * torch.tensor([1.0, -0.5, 0.0])
    refuse_other_values(reference, reference + 0.009 * scale, "mean")
    for change in (0.011, -0.011, float("nan")):
        with pytest.raises(TraceError) as error:
            refuse_other_values(reference, reference + change * scale, "mean")
        assert str(error.value) == "mean of the cut model differs from the original's"


# ---- what is recorded


def test_a_plan_names_every_weight_of_a_removed_latent(vae: DenseVAE, analysis: Analysis) -> None:
    stay = (0, 2, 3, 5)
    made = plan(vae, analysis, rows())
    assert kept(made) == {
        ("mean_head.weight", 0): stay,
        ("mean_head.bias", 0): stay,
        ("logvar_head.weight", 0): stay,
        ("logvar_head.bias", 0): stay,
        ("decoder.0.weight", 1): stay,
    }
    assert all(part.size == 6 for part in made.slices)
    assert made.attributes == {
        "mean_head.out_features": 4,
        "logvar_head.out_features": 4,
        "decoder.0.in_features": 4,
    }


def test_a_plan_of_a_convolutional_network_knows_a_transposed_weight() -> None:
    vae = convolutional([1])
    data = rows(200, vae.input_shape)
    made = plan(vae, analyze(vae, data), data)
    stay = (0, 2)
    assert kept(made) == {
        ("mean_head.weight", 0): stay,
        ("mean_head.bias", 0): stay,
        ("logvar_head.weight", 0): stay,
        ("logvar_head.bias", 0): stay,
        ("decoder.0.weight", 0): stay,
    }
    assert made.attributes == {
        "mean_head.out_channels": 2,
        "logvar_head.out_channels": 2,
        "decoder.0.in_channels": 2,
    }


def test_a_removed_latent_is_held_at_its_mean_and_the_bias_takes_it_over(vae: DenseVAE, analysis: Analysis) -> None:
    made = plan(vae, analysis, rows())
    constants = {removal.latent: removal.constant for removal in made.removals}
    assert constants == {i: analysis.latents[i].mean for i in IDLE}
    assert constants[1] == pytest.approx(IDLE_MEAN, rel=1e-6)
    weight = vae.decoder[0].weight.detach().double()
    expected = sum(weight[:, i] * constants[i] for i in IDLE)
    assert list(made.bias_changes) == ["decoder.0.bias"]
    torch.testing.assert_close(made.bias_changes["decoder.0.bias"], expected, rtol=1e-12, atol=0)


def test_a_plan_says_on_what_evidence_a_latent_goes(vae: DenseVAE) -> None:
    analysis = analyze(vae, rows(), ablate="all")
    made = plan(vae, analysis, rows(), remove=[3])
    latent = analysis.latents[3]
    removal = next(removal for removal in made.removals if removal.latent == 3)
    assert removal.verdict == latent.verdict != "inactive"
    assert removal.evidence == (
        f"observed on {analysis.n_samples} samples: variance {latent.variance:.3g}, posterior variance "
        f"{latent.posterior_variance:.3f}, fixing it costs {latent.ablation_cost:.3g} nats, noise moves the output by "
        f"{latent.noise_reaction:.2%}"
    )


def test_a_plan_made_without_ablation_says_so(vae: DenseVAE) -> None:
    made = plan(vae, analyze(vae, rows(), ablate="none"), rows())
    assert all(removal.evidence.endswith("decoder not tried") for removal in made.removals)


def test_a_plan_names_its_weights_and_the_split_of_its_data(vae: DenseVAE, analysis: Analysis) -> None:
    made = plan(vae, analysis, rows())
    sets = as_data(rows(), seed=5)
    assert made.weights_sha256 == weights_sha256(vae.state_dict())
    assert (made.scope, made.latent_size) == ("latents", 6)
    assert made.data == {
        "name": "data",
        "seed": 5,
        "select_rows": sets.select.count,
        "verify_rows": sets.verify.count,
        "calibrate_rows": analysis.n_samples,
    }


def test_verdicts_decide_and_not_the_figures_behind_them(vae: DenseVAE, analysis: Analysis) -> None:
    latents = [dataclasses.replace(latent, verdict="active") for latent in analysis.latents]
    latents[2] = dataclasses.replace(latents[2], verdict="inactive")
    made = plan(vae, dataclasses.replace(analysis, latents=tuple(latents)), rows())
    assert made.removed_latents == [2]
