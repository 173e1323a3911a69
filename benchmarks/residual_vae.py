"""A convolutional VAE of residual blocks, with channels and latents planted dead, and smooth images to run it on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256)
BLOCKS = 3  # of each width
LATENTS, IDLE = 64, tuple(range(0, 64, 8))
SIDE = 64
_SETTLING_BATCHES, _SETTLING_ROWS = 6, 24
_NEVER = -3.0  # what BatchNorm gives a channel whose ReLU then never fires


class Residual(nn.Module):
    """ReLU(skip + BatchNorm ∘ 3×3 ∘ ReLU ∘ BatchNorm ∘ 3×3), the skip a 1×1 where width or size change."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after, momentum=None)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after, momentum=None)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after, momentum=None)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.skip(x) + self.second_norm(self.second(inner)))


class ResidualVAE(nn.Module):
    """Images (B, 3, 64, 64) down to maps of 4×4 and back; `decode` gives logits."""

    def __init__(self) -> None:
        super().__init__()
        stem, *_, top = WIDTHS
        down: list[nn.Module] = [
            nn.Conv2d(3, stem, 3, 2, 1, bias=False),
            nn.BatchNorm2d(stem, momentum=None),
            nn.ReLU(),
        ]
        up: list[nn.Module] = []
        for before, after in zip((stem, *WIDTHS), WIDTHS, strict=False):
            down += [Residual(before, after, 2), *(Residual(after, after) for _ in range(BLOCKS - 1))]
        for before, after in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], stem), strict=True):
            up += [nn.Upsample(scale_factor=2), *(Residual(before, before) for _ in range(BLOCKS - 1))]
            up += [Residual(before, after)]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.maps = (top, SIDE // 16, SIDE // 16)
        size = top * (SIDE // 16) ** 2
        self.hidden = nn.Linear(size, 256)
        self.mean = nn.Linear(256, LATENTS)
        self.logvar = nn.Linear(256, LATENTS)
        self.wider = nn.Linear(LATENTS, 256)
        self.spread = nn.Linear(256, size)
        self.decoder = nn.Sequential(*up, nn.Upsample(scale_factor=2), nn.Conv2d(stem, 3, 3, 1, 1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.hidden(self.encoder(x)))
        return self.mean(hidden), self.logvar(hidden)

    def decode(self, z: Tensor) -> Tensor:
        maps = F.relu(self.spread(F.relu(self.wider(z)))).view(-1, *self.maps)
        logits: Tensor = self.decoder(maps)
        return logits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)), mean, logvar


def smooth_images(count: int, seed: int) -> Tensor:
    """Noise of 6×6 pixels, enlarged: (count, 3, 64, 64) on [0, 1]."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(1.5 * F.interpolate(coarse, (SIDE, SIDE), mode="bicubic"))


def planted(seed: int = 0) -> tuple[ResidualVAE, int]:
    """Random weights, BatchNorm settled on a few batches; the latents `IDLE` idle, and so many channels dead."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vae = ResidualVAE()
        vae.mean.weight.mul_(4)
        vae.logvar.bias.sub_(2)
        vae.train()
        for batch in range(_SETTLING_BATCHES):
            vae(smooth_images(_SETTLING_ROWS, 1000 + batch))
        vae.eval()
        dead = _kill(vae)
    return vae, dead


def _kill(vae: ResidualVAE) -> int:
    """Every eighth inner channel of each block never fires; the latents `IDLE` are the prior, and not read."""
    dead = 0
    for block in vae.modules():
        if isinstance(block, Residual):
            block.first_norm.weight[::8] = 0
            block.first_norm.bias[::8] = _NEVER
            dead += len(block.first_norm.bias[::8])
    at = list(IDLE)
    for head in (vae.mean, vae.logvar):
        head.weight[at], head.bias[at] = 0, 0
    vae.wider.weight[:, at] = 0
    return dead
