from pathlib import Path

import numpy as np
import torch

from vaeprune import load


def test_what_is_left_of_the_old_embeddings_is_what_the_new_encoder_gives(
    example, shelf: Path, small: Path, tmp_path: Path
) -> None:
    x = torch.from_numpy(np.load(shelf / "rows.npy")).float() / 255
    with torch.no_grad():
        np.save(tmp_path / "old.npy", load(shelf / "original").encode(x).mean.numpy())
        expected = load(small).encode(x).mean
    ran = example("prune_embeddings.py", small / "plan.json", "old.npy", "new.npy")
    assert (ran.returncode, ran.stderr) == (0, "")
    np.testing.assert_allclose(np.load(tmp_path / "new.npy"), expected, rtol=0, atol=1e-5)
    lines = ran.stdout.splitlines()
    assert lines[-1] == "old.npy: 6 columns, new.npy: 4, latents 0, 2, 3, 5"
    assert [line.split(":")[0] for line in lines[:-1]] == ["latent 1 goes", "latent 4 goes"]
    assert all(float(line.split()[-1]) < 1e-10 for line in lines[:-1])


def test_embeddings_of_another_width_are_refused(example, small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "old.npy", np.zeros((3, 5), np.float32))
    ran = example("prune_embeddings.py", small / "plan.json", "old.npy", "new.npy")
    assert ran.returncode == 1
    assert ran.stderr == "old.npy: has shape (3, 5), the plan is for (rows, 6)\n"
    assert not (tmp_path / "new.npy").exists()
