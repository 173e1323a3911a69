"""The shrunk model is a torch.nn.Module like any other: fine-tune it on rows of your own.

    python fine_tune.py small rows.npy tuned 3

`small` is what `vaeprune shrink` wrote; rows.npy holds rows in [0, 1], or uint8 pictures. The last number is epochs.
The folder `tuned` has the new weights beside the old config, so `vaeprune.load`, `analyze` and `export` take it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import vaeprune


def loss(vae: vaeprune.VAE, x: torch.Tensor) -> torch.Tensor:
    """−ELBO in nats per row, with one sample of z."""
    posterior = vae.encode(x)
    z = posterior.sample(torch.randn_like(posterior.mean))
    return (vae.likelihood.nats(x, vae.decode_parameters(z)) + posterior.kl().flatten(1).sum(1)).mean()


def main(folder: str, rows: str, out: str, epochs: str = "1") -> None:
    """Train the model in `folder` on an array of rows and write it to `out`."""
    torch.manual_seed(0)
    vae = vaeprune.load(folder)
    data = np.load(rows)
    x = torch.from_numpy(data.astype(np.float32) / (255 if data.dtype == np.uint8 else 1)).reshape(-1, *vae.input_shape)
    held, train = x[: len(x) // 10], x[len(x) // 10 :]

    with torch.no_grad():
        before = loss(vae.eval(), held).item()
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
    steps = int(epochs) * -(-len(train) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    for _ in range(int(epochs)):
        vae.train()
        for batch in train[torch.randperm(len(train))].split(128):
            optimiser.zero_grad()
            loss(vae, batch).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        after = loss(vae.eval(), held).item()
    print(f"-ELBO on {len(held)} held-out rows: {before:.2f} nats, {after:.2f} after {epochs} epochs")

    Path(out).mkdir()
    shutil.copy(Path(folder) / "config.json", out)  # the sizes and the likelihood are as they were
    save_file(vae.network.state_dict(), Path(out) / "model.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
