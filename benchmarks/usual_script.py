"""The script people write to count idle latents: a DataLoader over torchvision's MNIST, all means, numpy's variance."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

from vaeprune import load
from vaeprune.data.torchvision_shim import import_torchvision


def main(model: str, folder: str) -> None:
    datasets, transforms = import_torchvision("datasets"), import_torchvision("transforms")
    images = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    vae = load(model).eval()
    means, variances = [], []
    with torch.no_grad():
        for x, _ in DataLoader(images, batch_size=128):
            posterior = vae.encode(x)
            means.append(posterior.mean.numpy())
            variances.append(posterior.logvar.exp().numpy())
    variance, spread = np.concatenate(means).var(0), np.concatenate(variances).mean(0)
    for latent, (v, s) in enumerate(zip(variance, spread, strict=True)):
        print(latent, v, s, "inactive" if v < 0.01 and s > 0.8 else "active")


if __name__ == "__main__":
    main(*sys.argv[1:])
