"""Posterior means of an array of rows, from encoder.onnx alone: onnxruntime and numpy, no torch, no vaeprune.

    python onnx_encode.py small/encoder.onnx rows.npy means.npy

rows.npy holds uint8 pictures, which are scaled to [0, 1], or floats as the model was trained on them.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

BATCH = 256


def main(model: str, rows: str, out: str) -> None:
    """Encode an array of rows block by block."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (takes,) = session.get_inputs()  # x, of shape (batch, *row)
    data = np.load(rows, mmap_mode="r")  # a file larger than memory is read block by block
    means = []
    for start in range(0, len(data), BATCH):
        block = np.asarray(data[start : start + BATCH])
        x = block.astype(np.float32) / (255 if block.dtype == np.uint8 else 1)
        mu, _logvar = session.run(None, {takes.name: x.reshape(-1, *takes.shape[1:])})
        means.append(mu)
    np.save(out, np.concatenate(means))
    about = session.get_modelmeta().custom_metadata_map
    kept = json.loads(about.get("vaeprune.kept_latents", "null"))
    print(f"{len(data)} rows, {about.get('vaeprune.latent_size', '?')} latents, in the original: {kept}")


if __name__ == "__main__":
    main(*sys.argv[1:])
