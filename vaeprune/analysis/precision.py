"""What encoding in bfloat16 changes: the same rows in both precisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vaeprune.analysis.encoding_pass import How, accumulate
from vaeprune.analysis.latents import Thresholds, latents_of
from vaeprune.analysis.verdict import judge
from vaeprune.data import MemoryRows
from vaeprune.posterior import VAE


@dataclass(frozen=True)
class Precision:
    """bfloat16 against the model's own precision on `rows` rows.

    `changed`: latents whose verdict by the encoder alone differs. `variance`, `posterior_variance`: the largest
    differences of Var mu and E sigma² over the latents.
    """

    rows: int
    changed: tuple[int, ...]
    variance: float
    posterior_variance: float

    def __str__(self) -> str:
        """One line."""
        which = f"those of latents {', '.join(map(str, self.changed))} differ" if self.changed else "none differs"
        return (
            f"bfloat16: of the verdicts by the encoder on {self.rows:,} rows {which} from the model's own precision; "
            f"Var mu is off by up to {self.variance:.2g}, E σ² by up to {self.posterior_variance:.2g}"
        )

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Precision:
        """Read back the fields."""
        return cls(**entry | {"changed": tuple(entry["changed"])})


def effect_of_bf16(vae: VAE, rows: MemoryRows, limits: Thresholds) -> Precision:
    """Encode `rows` both ways and judge the latents by the encoder alone. Call it inside `measuring(vae)`."""
    both = []
    for bf16 in (False, True):
        moments = accumulate(vae, rows, how=How(comoments=False, bf16=bf16))
        both.append([judge(latent, limits, moments.count) for latent in latents_of(moments)])
    pairs = list(zip(*both, strict=True))
    return Precision(
        rows.count,
        tuple(a.index for a, b in pairs if a.verdict != b.verdict),
        max(abs(a.variance - b.variance) for a, b in pairs),
        max(abs(a.posterior_variance - b.posterior_variance) for a, b in pairs),
    )
