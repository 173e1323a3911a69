"""Variational autoencoders built from a config: dense, and the convolutional one of the paper's Fig. 5."""

from vaeprune.architectures.base import BuiltVAE, Initialisation, initialise
from vaeprune.architectures.config import architecture_from_json, build
from vaeprune.architectures.convolutional import ConvolutionalVAE
from vaeprune.architectures.dense import DenseVAE

__all__ = [
    "BuiltVAE",
    "ConvolutionalVAE",
    "DenseVAE",
    "Initialisation",
    "architecture_from_json",
    "build",
    "initialise",
]
