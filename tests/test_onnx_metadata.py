import json

import pytest

from planted import PlainVAE, dense
from vaeprune import __version__
from vaeprune.likelihood import Likelihood
from vaeprune.onnx_metadata import metadata_of


def shrunk(latents: int, **entry: object) -> dict[str, str]:
    vae = dense([1], latents=latents)
    vae.provenance["shrunk"] = {"latent_size": 5, "plan_sha256": "ab12", "before": None, **entry}
    return metadata_of(vae)


def test_a_model_that_was_never_cut_kept_all_it_has() -> None:
    found = metadata_of(dense([1], latents=3))
    assert found == {
        "vaeprune.version": __version__,
        "vaeprune.latent_size": "3",
        "vaeprune.original_latent_size": "3",
        "vaeprune.kept_latents": "[0, 1, 2]",
        "vaeprune.likelihood": '{"kind": "bernoulli", "output": "logits", "scale": 1.0}',
        "vaeprune.plan_sha256": "",
    }
    assert Likelihood.from_json(json.loads(found["vaeprune.likelihood"])) == dense([1]).likelihood


def test_a_cut_model_names_its_latents_by_their_old_numbers() -> None:
    found = shrunk(2, kept_latents=[1, 4])
    assert found["vaeprune.kept_latents"] == "[1, 4]"
    assert (found["vaeprune.latent_size"], found["vaeprune.original_latent_size"]) == ("2", "5")
    assert found["vaeprune.plan_sha256"] == "ab12"


def test_numbers_lead_through_all_cuts_to_the_first_model() -> None:
    before = {"latent_size": 9, "kept_latents": [0, 2, 3, 6, 8], "before": None}
    found = shrunk(2, kept_latents=[1, 4], before=before)
    assert found["vaeprune.kept_latents"] == "[2, 8]"
    assert found["vaeprune.original_latent_size"] == "9"


@pytest.mark.parametrize(
    "entry",
    [
        {"kept_latents": [0, 1]},  # grown since: three latents, two of which are old
        {"kept_latents": [0, 1, 5]},
        {"kept_latents": [0, 1, True]},
        {"kept_latents": "012"},
        {"kept_latents": [0, 1, 2], "latent_size": None},
        {"kept_latents": [0, 1, 2], "before": {"latent_size": 9, "kept_latents": [0, 1]}},
        {"kept_latents": [0, 1, 2], "before": "lost"},
    ],
    ids=str,
)
def test_what_a_config_does_not_tell_has_no_key(entry: dict[str, object]) -> None:
    found = shrunk(3, **entry)
    assert "vaeprune.kept_latents" not in found
    assert "vaeprune.original_latent_size" not in found
    assert found["vaeprune.latent_size"] == "3"


def test_a_plan_that_is_not_named_has_no_key() -> None:
    assert "vaeprune.plan_sha256" not in shrunk(2, kept_latents=[1, 3], plan_sha256=None)


def test_a_model_of_ones_own_needs_no_provenance() -> None:
    assert metadata_of(PlainVAE())["vaeprune.plan_sha256"] == ""
