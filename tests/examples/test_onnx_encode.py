import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from example_places import EXAMPLES

from vaeprune import load


def test_means_are_those_of_the_model(example, shelf: Path, small: Path, tmp_path: Path) -> None:
    ran = example("onnx_encode.py", small / "encoder.onnx", shelf / "rows.npy", "means.npy")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "900 rows, 4 latents, in the original: [0, 2, 3, 5]\n"
    x = torch.from_numpy(np.load(shelf / "rows.npy")).float() / 255
    with torch.no_grad():
        expected = load(small).encode(x).mean
    np.testing.assert_allclose(np.load(tmp_path / "means.npy"), expected, rtol=0, atol=1e-5)


def test_floats_are_taken_as_they_are(example, shelf: Path, small: Path, tmp_path: Path) -> None:
    x = np.load(shelf / "rows.npy")[:20].astype(np.float32) / 255
    np.save(tmp_path / "floats.npy", x)
    assert example("onnx_encode.py", small / "encoder.onnx", "floats.npy", "means.npy").returncode == 0
    with torch.no_grad():
        expected = load(small).encode(torch.from_numpy(x)).mean
    np.testing.assert_allclose(np.load(tmp_path / "means.npy"), expected, rtol=0, atol=1e-5)


def test_no_torch_and_nothing_of_this_package_is_loaded(shelf: Path, small: Path, tmp_path: Path) -> None:
    words = [str(EXAMPLES / "onnx_encode.py"), str(small / "encoder.onnx"), str(shelf / "rows.npy"), "out.npy"]
    look = (
        f"import runpy, sys; sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "wanted = {'torch', 'vaeprune', 'onnx', 'numpy', 'onnxruntime'}\n"
        "loaded = sorted(wanted & {name.split('.')[0] for name in sys.modules})\n"
        "assert loaded == ['numpy', 'onnxruntime'], loaded"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
