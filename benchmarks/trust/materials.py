"""The sound files that campaigns start from: a little model, its cut, its rows in every form."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trust.forking import child

INPUTS, LATENTS, ROWS = 12, 3, 200


def make(folder: Path) -> None:
    """Write rows.npy, rows.npz, pictures/, model/ and shrunk/ into `folder`, in a fork."""
    ended = child(lambda: _make(folder), folder, limit=1200)
    assert ended.code == 0, ended


def _make(folder: Path) -> int:
    import numpy as np
    import torch
    from PIL import Image
    from vaeprune.cli.__main__ import run

    generator = np.random.default_rng(0)
    rows = generator.random((ROWS, INPUTS), dtype=np.float32)
    np.save(folder / "rows.npy", rows)
    np.savez(folder / "rows.npz", x=rows)
    (folder / "pictures").mkdir()
    for i, row in enumerate(rows[:100]):
        Image.fromarray((255 * row.reshape(3, 4)).astype(np.uint8)).save(folder / "pictures" / f"{i:03}.png")
    train = ("train", "--data", "rows.npy", "--hidden", "8", "--latent", str(LATENTS), "--epochs", "2", "--quiet")
    code = run([*train, "--out", "model"])
    shrink = ("shrink", "model", "--data", "rows.npy", "--remove", "1", "--keep", "0,2", "--scope", "latents")
    wide = ("--tolerance", "9", "--max-elbo-loss", "99", "--quiet", "--out", "shrunk")
    assert torch.get_num_threads() == 1
    return code or run([*shrink, *wide])
