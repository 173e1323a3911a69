"""`shrink` on other people's models: scope `network`, a budget, and the folder that loads again with their class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from foreign_models import Family, family, maps, quietly, sequences
from foreign_models import rows as noise
from planted import assert_untouched, randomise, snapshot
from vaeprune.adapters import adapt
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.evidence import Tolerances
from vaeprune.model_folder import load
from vaeprune.opening import Source, open_model
from vaeprune.shrinking import Shrunk, shrink

WIDE = Tolerances(output=10.0, elbo=1e6)


def kl_network(name: str) -> nn.Module:
    """A tiny AutoencoderKL of diffusers or MONAI, whose group norms hold every channel they see."""
    if name == "diffusers":
        import_torchvision("transforms")  # which it imports, and which fails beside some builds of torch
        kind = quietly(lambda: pytest.importorskip("diffusers").AutoencoderKL)
        model = kind(
            in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, latent_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
            sample_size=8,
        )  # fmt: skip
    else:
        kind = quietly(lambda: pytest.importorskip("monai.networks.nets").AutoencoderKL)
        model = kind(
            spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 4), num_res_blocks=1, norm_num_groups=2,
            attention_levels=(False, False), latent_channels=3,
        )  # fmt: skip
    randomise(model, 4)
    return model.eval()


def pythae_network() -> nn.Module:
    pythae = quietly(lambda: pytest.importorskip("pythae.models"))
    model = quietly(lambda: pythae.VAE(pythae.VAEConfig(input_dim=(1, 6, 6), latent_dim=4)))
    randomise(model, 0)
    return model.eval()


def check(made: Family, result: Shrunk, before: dict[str, object], network: nn.Module) -> None:
    """Passed, or nothing done and every reason given; the original is as it was."""
    assert_untouched(network, before)
    if result.model is None:
        assert result.left or result.notes
        return
    assert result.evidence.passed
    assert result.evidence.exact.max_relative_error <= 1e-5
    assert result.parameters[1] < result.parameters[0]
    assert type(result.model.network) is type(network)


@pytest.mark.parametrize("budget", [None, 2.0], ids=["network", "budget"])
@pytest.mark.parametrize(
    "build", [family, sequences, lambda: maps(True), lambda: maps(False)], ids=["own", "sequence", "quant", "no quant"]
)
def test_small_models_of_others_are_shrunk(build: Callable[[], Family], budget: float | None) -> None:
    made = build()
    before = snapshot(made.network)
    result = shrink(adapt(made.network, made.data), made.data, budget=budget, tolerances=WIDE)
    check(made, result, before, made.network)
    assert set(made.idle) <= set(result.plan.removed_latents)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 5.0], ids=["network", "budget"])
@pytest.mark.parametrize("name", ["diffusers", "monai"])
def test_networks_of_group_norms_are_left_with_reasons_or_shrunk(name: str, budget: float | None) -> None:
    network = kl_network(name)
    made = Family(network, noise(1, 8, 8, count=160))
    before = snapshot(network)
    result = shrink(adapt(network, made.data), made.data, budget=budget, tolerances=WIDE)
    check(made, result, before, network)
    assert any("group_norm" in entry.reason for entry in result.left)


@pytest.mark.slow
def test_a_pythae_model_gives_up_units_for_a_budget() -> None:
    network = pythae_network()
    made = Family(network, noise(1, 6, 6, count=300))
    before = snapshot(network)
    result = shrink(adapt(network, made.data), made.data, budget=5.0, tolerances=WIDE)
    check(made, result, before, network)
    assert result.model is not None


@pytest.mark.slow
def test_the_folder_loads_again_with_their_class(tmp_path: Path) -> None:
    made = family()
    source = Source("foreign_models:OwnVAE", arguments={"latent_dim": 5})
    model = open_model(source, made.data)
    model.network.load_state_dict(made.network.state_dict())
    result = shrink(model, made.data, tmp_path / "small", budget=3.0, tolerances=WIDE)
    assert result.plan.scope == "budget"
    found = open_model(Source(str(tmp_path / "small"), factory="foreign_models:OwnVAE"), made.data)
    with torch.no_grad():
        assert torch.equal(found.encode(made.x).mean, result.model.encode(made.x).mean)
    with pytest.raises(Exception, match="factory"):
        load(tmp_path / "small")
