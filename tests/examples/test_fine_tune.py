from pathlib import Path

import numpy as np
import torch

from vaeprune import analyze, load
from vaeprune.posterior import negative_elbo


def test_the_shrunk_model_learns_and_loads_again(example, shelf: Path, small: Path, tmp_path: Path) -> None:
    ran = example("fine_tune.py", small, shelf / "rows.npy", "tuned", 3)
    assert (ran.returncode, ran.stderr) == (0, "")
    words = ran.stdout.split()
    assert ran.stdout.startswith("-ELBO on 90 held-out rows: ")
    before, after = float(words[5]), float(words[7])
    assert after < before - 1
    tuned, old = load(tmp_path / "tuned"), load(small)
    x = torch.from_numpy(np.load(shelf / "rows.npy")[:90]).float() / 255
    with torch.no_grad():
        losses = []
        for vae in (old, tuned):
            posterior = vae.encode(x)
            noise = torch.randn(200, *posterior.mean.shape, generator=torch.Generator().manual_seed(1))
            draws = [negative_elbo(vae, x, posterior.sample(n), posterior) for n in noise]
            losses.append(torch.stack(draws).mean().item())
    np.testing.assert_allclose(losses, [before, after], atol=1.0)  # one draw of noise a row there, 200 here
    assert any(not torch.equal(a, b) for a, b in zip(old.parameters(), tuned.parameters(), strict=True))
    assert analyze(tuned, shelf / "rows.npy").latent_size == 4
