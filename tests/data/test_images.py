from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vaeprune.data.images import load_images
from vaeprune.errors import DataError


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    x = pixels(3, 4, 5)
    for i in range(3):
        Image.fromarray(x[i]).save(tmp_path / f"{i}.png")
    got = load_images(tmp_path)
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    assert np.array_equal(got.numpy(), x[:, None])


def test_colour_pictures_have_three_channels(tmp_path: Path) -> None:
    x = pixels(2, 4, 5, 3)
    for i in range(2):
        Image.fromarray(x[i]).save(tmp_path / f"{i}.png")
    assert np.array_equal(load_images(tmp_path).numpy(), x.transpose(0, 3, 1, 2))


def test_colour_pictures_that_are_grey_everywhere_have_one_channel(tmp_path: Path) -> None:
    grey = pixels(4, 5)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "0.png")
    assert np.array_equal(load_images(tmp_path).numpy(), grey[None, None])


def test_one_coloured_picture_among_grey_ones_makes_three_channels(tmp_path: Path) -> None:
    grey, colour = pixels(4, 5), pixels(4, 5, 3)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(colour).save(tmp_path / "1.png")
    expected = np.stack([np.stack([grey] * 3), colour.transpose(2, 0, 1)])
    assert np.array_equal(load_images(tmp_path).numpy(), expected)


def test_pictures_come_in_order_of_path_from_all_folders_below(tmp_path: Path) -> None:
    for value, name in enumerate(["a/z.png", "b/a.PNG", "b/b/c.bmp", "c.pgm"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    assert load_images(tmp_path)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "pgm"])
def test_every_lossless_format_gives_its_pixels(tmp_path: Path, suffix: str) -> None:
    x = pixels(6, 7)
    Image.fromarray(x).save(tmp_path / f"0.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(load_images(tmp_path).numpy(), x[None, None])


def test_two_colours_of_one_bit_are_0_and_255(tmp_path: Path) -> None:
    x = pixels(4, 5) > 127
    Image.fromarray(x).save(tmp_path / "0.png")
    assert np.array_equal(load_images(tmp_path).numpy(), x[None, None] * np.uint8(255))


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    """Or refused; but values above 255 must not silently become white."""
    x = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    Image.fromarray(x).save(tmp_path / "0.png")
    try:
        got = load_images(tmp_path)
    except DataError:
        return
    assert got[0, 0].tolist() == [[0, 100], [200, 255]]


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(4, 5)).convert("P")
    image.save(tmp_path / "0.png", transparency=bytes(range(256)))
    assert load_images(tmp_path).shape == (1, 1, 4, 5)


def test_pictures_of_two_sizes_are_refused_with_both(tmp_path: Path) -> None:
    Image.fromarray(pixels(4, 5)).save(tmp_path / "a.png")
    Image.fromarray(pixels(6, 7)).save(tmp_path / "b.png")
    with pytest.raises(DataError) as caught:
        load_images(tmp_path)
    assert caught.value.message == f"{tmp_path / 'b.png'}: is 7x6 pixels, a.png is 5x4; expected one size"
    assert caught.value.hint == "resize the pictures first"


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError) as caught:
        load_images(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path}: holds no pictures, expected .bmp, .gif, .jpeg, ")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + bytes(50)])
def test_an_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    Image.fromarray(pixels(4, 5)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_images(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / 'b.png'}: is not a readable picture: ")


def attempt(folder: Path) -> tuple[str, torch.Tensor | None]:
    """The error's message, or the pictures."""
    try:
        return "", load_images(folder)
    except DataError as error:
        return error.message, None


@pytest.mark.filterwarnings("ignore")  # Pillow may also mention what is wrong with the file
@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP", "PPM"])
def test_a_truncated_picture_is_one_line_of_error_at_every_length(tmp_path: Path, format_: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(pixels(9, 8, 3)).save(whole, format_)
    for length in range(0, len(whole.getvalue()), 5):
        (tmp_path / "0.png").write_bytes(whole.getvalue()[:length])
        refused, got = attempt(tmp_path)
        if got is None:
            assert refused.startswith(f"{tmp_path / '0.png'}: "), length
        else:
            assert got.shape[2:] == (9, 8), length


@pytest.mark.filterwarnings("ignore")  # Pillow may also mention what is wrong with the file
@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP", "PPM"])
def test_a_damaged_picture_is_one_line_of_error_wherever_it_is_damaged(tmp_path: Path, format_: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(pixels(9, 8, 3)).save(whole, format_)
    for at in range(0, min(300, len(whole.getvalue())), 3):
        damaged = bytearray(whole.getvalue())
        damaged[at : at + 2] = b"\x81\x00"
        (tmp_path / "0.png").write_bytes(damaged)
        refused, got = attempt(tmp_path)
        if got is None:
            assert refused.startswith(f"{tmp_path / '0.png'}: "), at
        else:
            assert got.dtype == torch.uint8, at
