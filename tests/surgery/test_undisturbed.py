"""What a model computes undisturbed, and how a failure of its own code is told from one of shared weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planted import MapVAE, OwnVAE, PlainVAE, rows
from vaeprune.posterior import Posterior
from vaeprune.surgery import probe
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.undisturbed import undisturbed
from vaeprune.surgery.watching import CannotShare


class Fails(PlainVAE):
    """Whose decoder raises an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("sizes do not go together"), TypeError("no such argument")])
def test_an_error_of_the_models_own_code_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        undisturbed(Subject(Fails(error), (rows(1, (5,)),)))


def test_an_error_where_weights_are_shared_asks_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHARED_FROM", 1)
    subject = Subject(Fails(RuntimeError("expected Double but found Float")), (rows(1, (5,)),), sharing=True)
    assert subject.shared
    with pytest.raises(CannotShare, match="expected Double but found Float"):
        undisturbed(subject)


@pytest.mark.parametrize("build", [PlainVAE, MapVAE])
def test_each_row_changes_the_next_latent_and_no_other(build: Callable[[], OwnVAE]) -> None:
    seen: list[Tensor] = []

    class Noted(nn.Module):
        def __init__(self, of: nn.Module) -> None:
            super().__init__()
            self.of = of

        def forward(self, z: Tensor) -> Tensor:
            seen.append(z)
            return self.of(z)

    vae = build()
    vae.decoder = Noted(vae.decoder)
    rest = undisturbed(Subject(vae, (rows(4, vae.input_shape),)))
    for options, changed in (({}, None), ({"change": 2.0}, [0, 1]), ({"start": 1, "change": 2.0}, [1, 2])):
        decoded = rest.decode(rest.subject.vae, 2, **options)
        assert decoded.shape == (2, *rest.output.shape[1:])
        moved = (seen[-1] - rest.z).flatten(2) if seen[-1].dim() > 2 else (seen[-1] - rest.z)[:, :, None]
        expected = torch.zeros(2, vae.latent_size, dtype=torch.float64)
        if changed:
            expected[[0, 1], changed] = 2.0
        torch.testing.assert_close(moved, expected[:, :, None].expand_as(moved))


def test_the_posterior_of_one_row_stands_for_each_of_many() -> None:
    vae = PlainVAE()
    rest = undisturbed(Subject(vae, (rows(4, (5,)),)))
    found: Posterior = rest.encode(rest.subject.vae, 3)
    torch.testing.assert_close(found.mean, rest.posterior.mean.expand(3, -1))
    torch.testing.assert_close(found.logvar, rest.posterior.logvar.expand(3, -1))
