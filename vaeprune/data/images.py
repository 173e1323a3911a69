"""A folder of pictures as one uint8 tensor."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaeprune.data.sources import refuse_bomb
from vaeprune.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

_MOST_PIXELS = 1 << 24  # of one picture; a small file may expand to many


def load_images(folder: Path) -> Tensor:
    """Read every picture below `folder`, in order of path, as uint8 (N, C, H, W).

    One channel if all are grey, else three. Raises DataError if one cannot be read or has another size.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{folder}: holds no pictures, expected {', '.join(sorted(SUFFIXES))}")
    first = _read(paths[0])
    refuse_bomb(str(folder), sum(path.stat().st_size for path in paths), len(paths) * first.nbytes)
    pixels = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        picture = _read(path)
        if picture.shape != first.shape:
            raise DataError(
                f"{path}: is {picture.shape[1]}x{picture.shape[0]} pixels, {paths[0].name} is "
                f"{first.shape[1]}x{first.shape[0]}; expected one size",
                "resize the pictures first",
            )
        pixels[i] = picture
    grey = bool((pixels == pixels[..., :1]).all())
    return torch.from_numpy(pixels[..., :1] if grey else pixels).permute(0, 3, 1, 2).contiguous()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from PIL import Image, UnidentifiedImageError  # most data are no pictures

    try:
        # palettes with transparency: the colours are right all the same; large pictures are refused here
        with _without_warnings(), Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(
                    f"{path}: is {image.width}x{image.height} pixels, expected at most {_MOST_PIXELS:,} in all",
                    "resize the pictures first",
                )
            if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits: convert() would cut them off
                wide = np.asarray(image)
                high = 65535 if wide.dtype.kind in "iu" else 1
                if not (wide.min() >= 0 and wide.max() <= high):
                    raise DataError(f"{path}: has values in [{wide.min()}, {wide.max()}], expected [0, {high}]")
                grey = (wide.astype(np.float64) * (255 / high)).round().astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: is not a readable picture: {error}") from error
