"""An epoch of training beside the usual loop, and beside pythae's trainer on the same network.

The usual loop is PyTorch's own VAE example: a DataLoader over torchvision's MNIST with ToTensor, NCHW, Adam. Asked for:
at least 2 times for the dense network, 2.2 for the convolutional one (pythae: a figure only, dense). The convolutional
epoch is of its first 12,000 rows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.figures import Figure, faster
from benchmarks.timing import in_turn
from vaeprune.architectures import BuiltVAE
from vaeprune.data import MemoryRows, training_images
from vaeprune.data.torchvision_sets import default_folder
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.errors import DataError
from vaeprune.training import Options, train
from vaeprune.training_run import Recipe

DENSE_ROWS, CONVOLUTIONAL_ROWS, RUNS, BATCH = 60_000, 12_000, 3, 128


def usual_loop(vae: BuiltVAE, images: Dataset[tuple[Tensor, int]]) -> None:
    """One epoch, as everybody writes it."""
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
    vae.train()
    for x, _ in DataLoader(images, batch_size=BATCH, shuffle=True):
        optimiser.zero_grad()
        mean, logvar = vae.encode(x)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        logits = vae.decode_parameters(z)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
        ((reconstruction + kl) / len(x)).backward()
        optimiser.step()


def pythae_epoch(vae: BuiltVAE, x: Tensor) -> Callable[[], None] | None:
    """pythae's own trainer and its VAE around our encoder and decoder; None if it is not installed."""
    try:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except ImportError:
        return None

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, x: Tensor) -> ModelOutput:
            mean, logvar = self.vae.encode(x)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.vae.decode(z))

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            config = BaseTrainerConfig(
                output_dir=folder, num_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-3, no_cuda=True
            )
            shape = VAEConfig(input_dim=(1, 28, 28), latent_dim=vae.latent_size, reconstruction_loss="bce")
            model = VAE(shape, encoder=Encoder(), decoder=Decoder())
            logging.disable(logging.INFO)  # it tells its whole configuration
            BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config).train()
            logging.disable(logging.NOTSET)

    return epoch


def compared(architecture: str, count: int, rows: MemoryRows, asked: str) -> list[Figure]:
    """Figures of one network; every call trains a fresh copy."""
    recipe = Recipe("mnist", architecture=architecture)
    folder = str(default_folder())
    transforms = import_torchvision("transforms")
    images = import_torchvision("datasets").MNIST(folder, train=True, transform=transforms.ToTensor())
    first = MemoryRows("mnist", rows.tensors[0][:count])
    ours, theirs, third = f"train {architecture} MNIST, an epoch of {count:,} rows", "usual loop, DataLoader", "pythae"
    work: dict[str, Callable[[], object]] = {
        ours: lambda: train(recipe.network((28, 28)), first, Options(epochs=1, batch_size=BATCH)),
        theirs: lambda: usual_loop(recipe.network((28, 28)), Subset(images, range(count))),
    }
    if architecture == "dense":
        x = first.take(torch.arange(count))[0].view(-1, 1, 28, 28)
        epoch = pythae_epoch(recipe.network((28, 28)), x)
        work |= {third: epoch} if epoch else {}
    times = in_turn(work, RUNS)
    found = [faster(ours, theirs, times[ours], times[theirs], asked)]
    return found + ([faster(ours, "pythae's trainer", times[ours], times[third], "a figure")] if third in times else [])


def main(dense_rows: int = DENSE_ROWS, convolutional_rows: int = CONVOLUTIONAL_ROWS) -> Sequence[Figure]:
    try:
        rows = training_images("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return []
    return [
        *compared("dense", dense_rows, rows, "at least 2"),
        *compared("convolutional", convolutional_rows, rows, "at least 2.2"),
    ]
