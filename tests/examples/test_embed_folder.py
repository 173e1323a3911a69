from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vaeprune import load


def test_pictures_become_the_means_of_the_latents_in_use(example, shelf: Path, small: Path, tmp_path: Path) -> None:
    rows = np.load(shelf / "rows.npy")[:7, 0]
    for i, pixels in enumerate(rows):
        place = tmp_path / "pictures" / ("a" if i < 3 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    Image.fromarray(rows[0]).save(tmp_path / "pictures" / "b" / "again.png")
    ran = example("embed_folder.py", small / "encoder.onnx", "pictures", "index")
    assert (ran.returncode, ran.stderr) == (0, "")
    names = (tmp_path / "index" / "names.txt").read_text().splitlines()
    assert names == [*(f"a/{i}.png" for i in range(3)), *(f"b/{i}.png" for i in range(3, 7)), "b/again.png"]
    with torch.no_grad():
        expected = load(small).encode(torch.from_numpy(rows[[*range(7), 0]]).float().div(255).unsqueeze(1)).mean
    np.testing.assert_allclose(np.load(tmp_path / "index" / "vectors.npy"), expected, rtol=0, atol=1e-5)
    first, *nearest = ran.stdout.splitlines()
    assert first == "8 pictures, 4 numbers each, 128 bytes"
    assert [line.split() for line in nearest[:2]] == [["0.000", "a/0.png"], ["0.000", "b/again.png"]]
    distances = np.sort(np.linalg.norm(expected.numpy() - expected.numpy()[0], axis=1))
    np.testing.assert_allclose([float(line.split()[0]) for line in nearest], distances[:5], atol=1e-3)


def test_a_folder_without_pictures_is_named(example, small: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    ran = example("embed_folder.py", small / "encoder.onnx", "pictures", "index")
    assert ran.returncode == 1
    assert ran.stderr == "pictures: no picture in it, expected files ending in .bmp, .jpeg, .jpg, .png, .webp\n"
    assert not (tmp_path / "index").exists()
