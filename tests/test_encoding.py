from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from planted import GAUSSIAN, MapVAE, convolutional, dense, rows
from vaeprune.data import MemoryRows, open_data
from vaeprune.data.rows import StreamedRows
from vaeprune.data.sources import MemorySource
from vaeprune.encoding import encode_to_file
from vaeprune.errors import DataError, StorageError


def held(x: Tensor) -> MemoryRows:
    return MemoryRows("rows", x)


def test_the_file_holds_the_means_of_all_rows_in_order(tmp_path: Path) -> None:
    vae = dense([1])
    x = rows(2500)
    shape = encode_to_file(vae, held(x), tmp_path / "z.npy")
    z = np.load(tmp_path / "z.npy", allow_pickle=False)
    with torch.no_grad():
        expected = vae.encode(x).mean.numpy()
    assert shape == z.shape == (2500, 6)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, expected, atol=1e-5)


def test_rows_are_streamed_from_a_file_whole_and_in_order(tmp_path: Path) -> None:
    """All of them, not only those of the calibrate set."""
    vae = dense([1])
    x = rows(2500)
    np.save(tmp_path / "x.npy", x.numpy())
    assert encode_to_file(vae, open_data(tmp_path / "x.npy").whole, tmp_path / "z.npy") == (2500, 6)
    with torch.no_grad():
        expected = vae.encode(x).mean.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, atol=1e-5)


def test_rows_of_batches_need_not_be_counted_beforehand(tmp_path: Path) -> None:
    """The header is written before their number is known, and again after."""
    vae, x = dense([1]), rows(1300).numpy()
    stream = StreamedRows(MemorySource("rows", x), 0, None)
    stream.count = None
    assert encode_to_file(vae, stream, tmp_path / "z.npy") == (1300, 6)
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(x)).mean.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, atol=1e-5)


def test_images_of_bytes_are_scaled_and_shaped_for_the_model(tmp_path: Path) -> None:
    vae = convolutional([1]).train()
    x = (255 * rows(20, (17, 18))).round().to(torch.uint8)
    encode_to_file(vae, held(x), tmp_path / "z.npy")
    with torch.no_grad():
        expected = vae.eval().encode(x[:, None].float() / 255).mean.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, atol=1e-5)


def test_latents_that_are_maps_keep_their_shape(tmp_path: Path) -> None:
    vae = MapVAE()
    x = rows(30, (2, 4, 4))
    assert encode_to_file(vae, held(x), tmp_path / "z.npy") == (30, 3, 4, 4)
    with torch.no_grad():
        expected = vae.encode(x).mean.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, atol=1e-5)


def test_a_float64_model_writes_float32(tmp_path: Path) -> None:
    vae = dense([1]).double()
    x = rows(30).double()
    encode_to_file(vae, held(x), tmp_path / "z.npy")
    with torch.no_grad():
        expected = vae.encode(x).mean.float().numpy()
    z = np.load(tmp_path / "z.npy")
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, expected)


def test_progress_counts_every_row(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    encode_to_file(dense([1]), held(rows(1500)), tmp_path / "z.npy", progress=lambda *step: seen.append(step))
    assert sum(step[1] for step in seen) == 1500
    assert {(step[0], step[2]) for step in seen} == {("encoding", 1500)}


def test_the_mode_of_the_model_is_put_back(tmp_path: Path) -> None:
    vae = dense([1]).train()
    encode_to_file(vae, held(rows(30)), tmp_path / "z.npy")
    assert all(module.training for module in vae.modules())


# ---- nothing is left behind


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_row_that_is_not_finite_leaves_nothing(tmp_path: Path) -> None:
    x = rows(2500).numpy()
    x[2000, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinite values"):
        encode_to_file(
            dense([1], likelihood=GAUSSIAN), StreamedRows(MemorySource("rows", x), 0, None), tmp_path / "z.npy"
        )
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_size_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        encode_to_file(dense([1]), held(rows(30, (13,))), tmp_path / "z.npy")
    assert str(error.value) == "rows: rows have shape (13,), the model expects (12,)"
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(dense([1]), held(rows(1500)), tmp_path / "z.npy", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "z.npy").write_bytes(b"mine")
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(dense([1]), held(rows(1500)), tmp_path / "z.npy", force=True, progress=stop)
    assert (tmp_path / "z.npy").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["z.npy"]


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "z.npy"
    out.write_bytes(b"mine")
    with pytest.raises(StorageError) as error:
        encode_to_file(dense([1]), held(rows(30)), out)
    assert str(error.value) == f"{out}: already exists; choose another name or pass --force to replace it"
    assert out.read_bytes() == b"mine"
    encode_to_file(dense([1]), held(rows(30)), out, force=True)
    assert np.load(out).shape == (30, 6)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    with pytest.raises(StorageError) as error:
        encode_to_file(dense([1]), held(rows(30)), tmp_path / "z", force=True)
    assert str(error.value) == f"{tmp_path / 'z'}: is a folder, expected a file name"


def test_the_rows_may_be_the_file_that_is_replaced(tmp_path: Path) -> None:
    """The old rows are read to the end before the new ones take their name."""
    vae, x, path = dense([1]), rows(1500), tmp_path / "x.npy"
    np.save(path, x.numpy())
    encode_to_file(vae, open_data(path).whole, path, force=True)
    with torch.no_grad():
        expected = vae.encode(x).mean.numpy()
    np.testing.assert_allclose(np.load(path), expected, atol=1e-5)
