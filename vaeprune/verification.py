"""Evidence that a smaller model gives the same outputs, from rows that had no part in choosing what to cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune import ranks
from vaeprune.adapters import as_vae, batches_for, element_type, measuring
from vaeprune.analysis.latents import interval
from vaeprune.data import DataSets, Rows, as_data
from vaeprune.errors import ModelError, PlanError
from vaeprune.evidence import Error, Evidence, Exact, Sampling, Tolerances, gates_of
from vaeprune.onnx_export import onnx_errors
from vaeprune.posterior import VAE, Posterior, negative_elbo
from vaeprune.surgery.cut import cut_any_weights, refuse_broken
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.reference import Agreement, Reference, larger

_DOUBLE_ROWS = 256


def verify(
    original: VAE | nn.Module,
    smaller: VAE | nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    plan: Plan | None = None,
    *,
    onnx: str | Path | None = None,
    tolerances: Tolerances | None = None,
    seed: int = 0,
    fine_tuned: bool = False,
    same_epochs: VAE | nn.Module | None = None,
) -> Evidence:
    """Compare two models on the verify rows, output by output.

    With the `plan` that led from one to the other, also exactly: the original, its removed latents held at the plan's
    constants, must agree up to rounding. Without it the latents are taken to be the same ones if there are as many,
    and `exact` is None. `onnx`: a folder whose ONNX files are compared with `smaller`. Neither model is changed.
    `fine_tuned`: the smaller model was trained after the cut, so nothing can be exact; `same_epochs` is then the
    original trained as long, which the ELBO gate holds it against. A plan made for a budget sets the ELBO gate's limit.
    Of several ranks each compares its share of the rows, with the noise that one rank would give them; ONNX files are
    for rank 0 alone.
    Raises ModelError if the two cannot be compared; a failed gate is not an error here, see `Evidence.passed`.
    """
    limits = tolerances or Tolerances()
    sets = as_data(data, int(plan.data.get("seed", seed)) if plan else seed)
    if plan and plan.data.get("seed", sets.seed) != sets.seed:
        raise PlanError(
            f"data: are split by seed {sets.seed}, the plan was made with seed {plan.data['seed']}",
            "split them by the plan's seed, so that no row that chose the cut judges it",
        )
    a, b = as_vae(original, sets), as_vae(smaller, sets)
    if math.prod(a.input_shape) != math.prod(b.input_shape):
        raise ModelError(f"models: take rows of shape {a.input_shape} and {b.input_shape}, expected the same")
    kept = _kept_latents(a, b, plan)
    in_double = _exact_in_double(a, plan, sets.verify, seed) if plan is not None and not fine_tuned else None
    with measuring(a, b):
        comparison = _Comparison(a, b, kept, None if fine_tuned else plan, seed)
        for number, batch in enumerate(batches_for(a, sets.verify, 512)):
            if number % ranks.world() == ranks.rank():
                comparison.see(*batch)
            else:
                comparison.skip(len(batch[0]))
        comparison.gather()
        exact = None
        if plan is not None and not fine_tuned:
            exact = Exact(*comparison.agreement.largest(), in_double)
    found = onnx_errors(b, onnx, sets.verify) if onnx is not None else None
    mean_path, sampling = comparison.mean_path.result(), comparison.sampling()
    prior = comparison.prior.result() if kept is not None else None
    span = comparison.span
    fair = None
    if same_epochs is not None:
        fair = elbo_difference(as_vae(same_epochs, sets), b, sets.verify, kept, seed)
    budget = plan.data.get("budget") if plan else None
    gates = gates_of(element_type(b)[0], exact, mean_path, sampling, prior, found, span, limits, budget, fair)
    return Evidence(sets.verify.count, span, exact, mean_path, sampling, prior, found, gates, fair)


def elbo_difference(a: VAE, b: VAE, rows: Rows, kept: Tensor | None, seed: int = 0) -> Sampling:
    """How much worse the ELBO of `b` is than that of `a` on `rows`, in nats per row, with its 95% interval.

    Both get the same noise in the latents of `a` that are `kept` in `b`; all its own if None.
    """
    with measuring(a, b):
        comparison = _Comparison(a, b, kept, None, seed)
        for batch in batches_for(a, rows, 512):
            comparison.see_losses(*batch)
    return comparison.sampling()


class _Running:
    """Largest and mean square of differences."""

    def __init__(self) -> None:
        self._largest, self._squares, self._count = 0.0, 0.0, 0

    def see(self, reference: Tensor, found: Tensor) -> None:
        difference = (reference.double() - found.double()).abs()
        self._largest = larger(self._largest, difference.max().item())
        self._squares += difference.square().sum().item()
        self._count += difference.numel()

    def merge(self, other: _Running) -> None:
        self._largest, self._squares = larger(self._largest, other._largest), self._squares + other._squares
        self._count += other._count

    def result(self) -> Error:
        return Error(self._largest, math.sqrt(self._squares / max(self._count, 1)))


class _Comparison:
    """Runs both models side by side, batch by batch."""

    def __init__(self, a: VAE, b: VAE, kept: Tensor | None, plan: Plan | None, seed: int) -> None:
        self.a, self.b, self.kept = a, b, kept
        self._reference = Reference(a, plan) if plan else None
        self.mean_path, self.prior = _Running(), _Running()
        self._generator = torch.Generator().manual_seed(seed)
        self._low, self._high = math.inf, -math.inf
        self._losses: list[Tensor] = []
        self.agreement = Agreement()

    @property
    def span(self) -> float:
        """The original's output range, max − min."""
        return max(self._high - self._low, 1e-12)

    def see(self, x: Tensor, *condition: Tensor) -> None:
        """One batch of rows through both."""
        p, q = self.a.encode(x, *condition), self.b.encode(x, *condition)
        reference = self.a.decode(p.mean, *condition)
        self._low, self._high = (
            _smaller(self._low, reference.min().item()),
            larger(self._high, reference.max().item()),
        )
        self.mean_path.see(reference, self.b.decode(q.mean, *condition))
        z = self._compare_losses(x, p, q, condition)
        if self.kept is None:
            return
        prior = self._fresh(p.mean)
        self.prior.see(self.a.decode(prior, *condition), self.b.decode(prior[:, self.kept], *condition))
        if self._reference is not None:
            held = self._reference.encode(x, *condition)
            self.agreement.see("mean", held.mean, q.mean)
            self.agreement.see("logvar", held.logvar, q.logvar)
            for name, latents in (("posterior", z), ("prior", prior)):
                decoded = self._reference.decode(latents, *condition)
                self.agreement.see(name, decoded, self.b.decode(latents[:, self.kept], *condition))

    def skip(self, rows: int) -> None:
        """Draw what `see` would draw for so many rows, which another rank sees."""
        self._drawn((rows, *self.a.latent_shape))
        self._drawn((rows, *(self.b if self.kept is None else self.a).latent_shape))

    def gather(self) -> None:
        """Take in what the other ranks saw; collective."""
        mine = (self.mean_path, self.prior, self._low, self._high, [t.cpu() for t in self._losses], self.agreement)
        for rank, theirs in enumerate(ranks.gathered(mine)):
            if rank == ranks.rank():
                continue
            mean_path, prior, low, high, losses, agreement = theirs
            self.mean_path.merge(mean_path)
            self.prior.merge(prior)
            self._low, self._high = _smaller(self._low, low), larger(self._high, high)
            self._losses = [*(t.cpu() for t in self._losses), *losses]
            self.agreement.merge(agreement)

    def see_losses(self, x: Tensor, *condition: Tensor) -> None:
        """One batch of rows, for the ELBO alone."""
        self._compare_losses(x, self.a.encode(x, *condition), self.b.encode(x, *condition), condition)

    def _compare_losses(self, x: Tensor, p: Posterior, q: Posterior, condition: Sequence[Tensor]) -> Tensor:
        """Note the difference of −ELBO; returns the sample of p that was used."""
        noise = self._fresh(p.mean)
        z = p.sample(noise)
        own = noise[:, self.kept] if self.kept is not None else self._fresh(q.mean)
        before = negative_elbo(self.a, x, z, p, condition)
        self._losses.append(negative_elbo(self.b, x, q.sample(own), q, condition) - before)
        return z

    def sampling(self) -> Sampling:
        """Mean and interval of the paired ELBO differences."""
        losses = torch.cat(self._losses).double()
        error = losses.std().item() / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
        return Sampling(losses.mean().item(), interval(losses.mean().item(), error))

    def _fresh(self, like: Tensor) -> Tensor:
        return self._drawn(like.shape).to(like)

    def _drawn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def _exact_in_double(original: VAE, plan: Plan, rows: Rows, seed: int) -> float | None:
    """The largest relative difference when the same plan is applied to the same weights in float64.

    None for a model that does not run in float64.
    """
    subject = Subject(original, next(iter(batches_for(original, rows, 2))))
    if subject.dtype != torch.float64:
        return None
    a = subject.vae
    b = cut_any_weights(a, plan)
    refuse_broken(b, rows)
    comparison = _Comparison(a, b, torch.tensor(plan.kept_latents), plan, seed)
    seen = 0
    with measuring(a, b):
        for batch in batches_for(a, rows, 128):
            comparison.see(*batch)
            seen += len(batch[0])
            if seen >= _DOUBLE_ROWS:
                break
    return comparison.agreement.largest()[1]


def _kept_latents(a: VAE, b: VAE, plan: Plan | None) -> Tensor | None:
    if plan is None:
        return torch.arange(a.latent_size) if a.latent_size == b.latent_size else None
    if a.latent_size != plan.latent_size or b.latent_size != len(plan.kept_latents):
        raise ModelError(
            f"models: have {a.latent_size} and {b.latent_size} latents, the plan leads from {plan.latent_size} to "
            f"{len(plan.kept_latents)}",
            "name the model the plan was made for first and the one it led to second",
        )
    return torch.tensor(plan.kept_latents)


def _smaller(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)
