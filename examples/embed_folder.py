"""A folder of pictures becomes vectors.npy and names.txt, ready for a vector index: onnxruntime, numpy and Pillow.

    python embed_folder.py small/encoder.onnx pictures/ index/

The encoder of a shrunk model gives the latents in use and nothing else, so every column is worth its memory. The last
lines look up the nearest neighbours of the first picture, as an index would.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
BATCH = 256


def load(path: Path, channels: int, height: int, width: int) -> np.ndarray:
    """One picture (channels, height, width) in [0, 1]."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB").resize((width, height)), np.float32) / 255
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def main(model: str, folder: str, out: str) -> None:
    """Encode all pictures below `folder` and look the first one up."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (takes,) = session.get_inputs()
    shape = takes.shape[1:]  # (channels, height, width)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        sys.exit(f"{folder}: no picture in it, expected files ending in {', '.join(sorted(ENDINGS))}")
    vectors = []
    for start in range(0, len(files), BATCH):
        x = np.stack([load(path, *shape) for path in files[start : start + BATCH]])
        mu, _logvar = session.run(None, {takes.name: x})
        vectors.append(mu.reshape(len(x), -1))
    found = np.concatenate(vectors)
    Path(out).mkdir(parents=True, exist_ok=True)
    np.save(Path(out) / "vectors.npy", found)
    names = [path.relative_to(folder).as_posix() for path in files]
    (Path(out) / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(found)} pictures, {found.shape[1]} numbers each, {found.nbytes} bytes")

    distances = np.linalg.norm(found - found[0], axis=1)
    for i in np.argsort(distances, kind="stable")[:5]:
        print(f"{distances[i]:8.3f}  {names[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
