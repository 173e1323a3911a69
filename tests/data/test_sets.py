from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vaeprune.data import DataSets, Rows, as_data, open_data, sets, sources, tiles, training_images
from vaeprune.data.hashing import row_hashes, unit_interval
from vaeprune.data.sets import to_shape
from vaeprune.errors import DataError

SETS = ("calibrate", "select", "verify")


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def held(rows: Rows) -> NDArray[np.float32]:
    return np.concatenate([x.numpy().copy() for (x,) in rows.batches(97)])


def parts(data: DataSets) -> dict[str, Counter[bytes]]:
    """Each set as a multiset of rows."""
    return {name: Counter(row.tobytes() for row in held(getattr(data, name))) for name in SETS}


def bytes_of(x: NDArray[Any]) -> Counter[bytes]:
    return Counter(row.tobytes() for row in x)


# Parting


def test_rows_are_parted_60_20_20_by_their_hash() -> None:
    x = normal(10_000, 3)
    data = as_data(x, seed=4)
    u = unit_interval(row_hashes(x, 4))
    assert np.array_equal(held(data.calibrate), x[u < 0.6])
    assert np.array_equal(held(data.select), x[(u >= 0.6) & (u < 0.8)])
    assert np.array_equal(held(data.verify), x[u >= 0.8])
    for name, share in zip(SETS, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(held(getattr(data, name))) - 10_000 * share) < 4 * (10_000 * share * (1 - share)) ** 0.5


def test_the_three_sets_share_no_row_and_leave_none_out() -> None:
    x = normal(500, 3)
    calibrate, select, verify = parts(as_data(x)).values()
    assert not calibrate & select
    assert not select & verify
    assert not calibrate & verify
    assert calibrate + select + verify == bytes_of(x)


def test_equal_rows_stay_in_one_set() -> None:
    x = np.tile(normal(200, 3), (5, 1))
    found = parts(as_data(x))
    assert sum(len(rows) for rows in found.values()) == 200
    assert {count for rows in found.values() for count in rows.values()} == {5}


def test_shuffling_moves_no_row_to_another_set() -> None:
    x = normal(500, 3)
    assert parts(as_data(x[np.random.default_rng(1).permutation(500)])) == parts(as_data(x))


def test_limiting_the_rows_moves_no_row_to_another_set(tmp_path: Path) -> None:
    x = normal(1000, 3)
    np.save(tmp_path / "x.npy", x)
    whole, limited = parts(open_data(tmp_path / "x.npy")), parts(open_data(tmp_path / "x.npy", rows=400))
    for name in SETS:
        assert limited[name] <= whole[name]
    assert sum(limited.values(), Counter()) == bytes_of(x[:400])


def test_another_seed_parts_otherwise() -> None:
    x = normal(500, 3)
    a, b = parts(as_data(x, seed=0)), parts(as_data(x, seed=1))
    both = len(a["verify"] & b["verify"])
    assert 0 < both < len(b["verify"]) / 2  # a fifth, were they independent


@pytest.mark.parametrize("form", ["tensor", "list", "DataLoader", "shuffling DataLoader", "npy", "npz", "compressed"])
def test_a_row_lands_in_the_same_set_however_the_data_are_given(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 100)
    x = normal(300, 2, 3)
    expected = parts(as_data(x, seed=5))
    tensor = torch.from_numpy(x)
    data: Any = tensor
    if form == "list":
        data = list(tensor.split(7))
    elif form == "DataLoader":
        data = DataLoader(TensorDataset(tensor), batch_size=13)
    elif form == "shuffling DataLoader":
        data = DataLoader(TensorDataset(tensor, torch.zeros(300)), batch_size=13, shuffle=True)
    elif form in ("npy", "npz", "compressed"):
        save = {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[form]
        data = tmp_path / f"x.{form[:2] + form[2] if form != 'compressed' else 'npz'}"
        save(data, x)
    assert parts(as_data(data, seed=5)) == expected


@pytest.mark.parametrize("view", ["read-only", "reversed", "strided", "big endian"])
def test_views_of_an_array_are_parted_like_their_copies(view: str) -> None:
    x = normal(300, 4)
    if view == "read-only":
        x.setflags(write=False)
    given = {"reversed": x[::-1, ::-1], "strided": x[::2, 1:3], "big endian": x.astype(">f4")}.get(view, x)
    plain = given.astype(np.float32).copy()
    assert parts(as_data(given)) == parts(as_data(plain))
    assert np.array_equal(held(as_data(given).whole), plain)


def test_sets_stay_as_they_are() -> None:
    data = as_data(normal(300, 3))
    assert as_data(data) is data


def test_a_data_set_describes_what_judged_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(300, 2, 3))
    data = open_data(str(tmp_path / "x.npy"), seed=3)
    assert data.row_shape == (2, 3)
    assert data.describe() == {
        "name": str(tmp_path / "x.npy"),
        "seed": 3,
        "select_rows": len(held(data.select)),
        "verify_rows": len(held(data.verify)),
    }


def test_at_most_so_many_rows_judge_and_calibration_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "MOST_JUDGED_ROWS", 1000)
    x = normal(8000, 2)
    found, whole = as_data(x), unit_interval(row_hashes(x, 0))
    assert (found.select.count, found.verify.count) == (1000, 1000)
    assert len(held(found.calibrate)) == (whole < 0.6).sum()
    assert parts(found)["select"] <= bytes_of(x[(whole >= 0.6) & (whole < 0.8)])
    again = as_data(x[np.random.default_rng(1).permutation(8000)])
    assert parts(again) == parts(found)


def test_the_whole_is_all_rows_that_calibrate_is_taken_from_in_order(tmp_path: Path) -> None:
    x, y = normal(100, 3), normal(400, 3, seed=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    assert np.array_equal(held(as_data(y).whole), y)
    assert np.array_equal(held(open_data(tmp_path / "y.npy", rows=300).whole), y[:300])
    assert np.array_equal(held(open_data(tmp_path / "x.npy", tmp_path / "y.npy").whole), x)


class Pairs(Dataset[Any]):
    """A torch Dataset of (row, label)."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index], 3


def test_a_torch_dataset_is_read_in_batches() -> None:
    x = normal(700, 3)
    assert parts(as_data(Pairs(torch.from_numpy(x)))) == parts(as_data(x))


def test_a_dataset_of_pictures_that_are_no_tensors_is_one_line_of_error() -> None:
    with pytest.raises(DataError):
        as_data(Pairs([Image.new("L", (4, 4))] * 300))


def test_what_holds_no_rows_at_all_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        as_data(5)  # type: ignore[arg-type]
    assert caught.value.message == "data: got a int, expected an array, a Dataset or batches of rows"


def test_bytes_are_scaled_to_the_input_range_asked_for(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    data = open_data(tmp_path / "x.npy", input_range=(-1.0, 1.0))
    u = unit_interval(row_hashes(x, 0))
    for name, low, high in (("calibrate", 0.0, 0.6), ("select", 0.6, 0.8), ("verify", 0.8, 1.0)):
        expected = x[(u >= low) & (u < high)] / 127.5 - 1
        np.testing.assert_allclose(held(getattr(data, name)), expected, atol=1e-6)


# Conditions


def test_conditions_follow_their_rows_into_the_three_sets(tmp_path: Path) -> None:
    x = normal(300, 3)
    labels = np.arange(300)
    np.savez(tmp_path / "x.npz", x=x, y=labels)
    data = open_data(tmp_path / "x.npz", condition="y")
    assert parts_of_rows(data) == parts(as_data(x))
    for name in SETS:
        for rows, conditions in getattr(data, name).batches(50):
            assert np.array_equal(rows, x[conditions.numpy()])


def parts_of_rows(data: DataSets) -> dict[str, Counter[bytes]]:
    return {
        name: Counter(row.numpy().tobytes() for rows, _ in getattr(data, name).batches(50) for row in rows)
        for name in SETS
    }


@pytest.mark.parametrize("data", ["tiles", "pictures"])
def test_a_condition_where_there_can_be_none_is_refused_and_not_ignored(tmp_path: Path, data: str) -> None:
    if data == "pictures":
        for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (200, 2, 2), dtype=np.uint8)):
            Image.fromarray(picture).save(tmp_path / f"{i:03}.png")
    with pytest.raises(DataError):
        open_data("tiles" if data == "tiles" else tmp_path, condition="label")


# Held-out data


def test_held_out_data_judge_and_the_others_calibrate_whole(tmp_path: Path) -> None:
    x, y = normal(100, 3), normal(400, 3, seed=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = open_data(tmp_path / "x.npy", tmp_path / "y.npy", seed=2)
    u = unit_interval(row_hashes(y, 2))
    assert np.array_equal(held(data.calibrate), x)
    assert np.array_equal(held(data.select), y[u < 0.5])
    assert np.array_equal(held(data.verify), y[u >= 0.5])


def test_a_limit_takes_the_first_rows_of_each_split(tmp_path: Path) -> None:
    x, y = normal(100, 3), normal(400, 3, seed=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = open_data(tmp_path / "x.npy", tmp_path / "y.npy", rows=90)
    assert np.array_equal(held(data.calibrate), x[:90])
    assert parts(data)["select"] + parts(data)["verify"] == bytes_of(y[:90])


def test_held_out_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(100, 3))
    np.save(tmp_path / "y.npy", normal(100, 4))
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "x.npy", tmp_path / "y.npy")
    assert caught.value.message == (f"{tmp_path / 'y.npy'}: rows have shape (4,), those of {tmp_path / 'x.npy'} (3,)")


# Named sets


def test_tiles_calibrate_on_the_training_split_and_halve_the_held_out_one() -> None:
    data = open_data("tiles")
    test = tiles(10_000, 0, held_out=True)
    assert data.calibrate.count == 60_000
    first = next(iter(data.calibrate.batches(5)))[0]
    assert torch.equal(first, tiles(60_000, 0)[:5].float() / 255)
    stored = torch.cat([data.select.tensors[0], data.verify.tensors[0]])
    u = unit_interval(row_hashes(test.numpy(), 0))
    assert torch.equal(stored, torch.cat([test[u < 0.5], test[u >= 0.5]]))


def test_limited_tiles_are_the_first_of_each_split() -> None:
    data = open_data("tiles", rows=100)
    assert torch.equal(torch.from_numpy(held(data.calibrate)), tiles(60_000, 0)[:100].float() / 255)
    assert data.select.count + data.verify.count == 100


@pytest.mark.mnist
def test_mnist_calibrates_on_60000_digits_and_judges_on_the_10000(mnist_folder: Path) -> None:
    data = open_data("mnist", folder=mnist_folder)
    assert (data.calibrate.count, data.row_shape) == (60_000, (28, 28))
    assert data.select.count + data.verify.count == 10_000
    assert abs(data.select.count - 5000) < 200
    select, verify = ({row.tobytes() for row in s.tensors[0].numpy()} for s in (data.select, data.verify))
    assert not select & verify


# Folders of pictures


def test_a_folder_of_pictures_is_parted_like_an_array(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 4, 4), dtype=np.uint8)
    for i, picture in enumerate(x):
        Image.fromarray(picture).save(tmp_path / f"{i:03}.png")
    data = open_data(tmp_path)
    assert data.row_shape == (1, 4, 4)
    assert parts(data) == parts(as_data(x[:, None]))


# Training rows


def test_training_takes_the_rows_that_calibrate(tmp_path: Path) -> None:
    x = normal(300, 3)
    np.save(tmp_path / "x.npy", x)
    rows = training_images(tmp_path / "x.npy", seed=6)
    assert np.array_equal(held(rows), held(open_data(tmp_path / "x.npy", seed=6).calibrate))


def test_training_takes_the_whole_training_split_of_a_named_set() -> None:
    assert torch.equal(training_images("tiles").tensors[0], tiles(60_000, 0))


def test_training_takes_the_first_rows_only_when_limited(tmp_path: Path) -> None:
    x = normal(300, 3)
    np.save(tmp_path / "x.npy", x)
    expected = x[:50][unit_interval(row_hashes(x[:50], 0)) < 0.6]
    assert np.array_equal(held(training_images(tmp_path / "x.npy", rows=50)), expected)
    assert torch.equal(training_images("tiles", rows=50).tensors[0], tiles(60_000, 0)[:50])


@pytest.mark.parametrize("rows", [0, -1, -250])
def test_training_on_fewer_than_one_row_is_refused(tmp_path: Path, rows: int) -> None:
    np.save(tmp_path / "x.npy", normal(300, 3))
    with pytest.raises(DataError, match=f"rows: got {rows}, expected at least 1"):
        training_images(tmp_path / "x.npy", rows=rows)


# What is refused


@pytest.mark.parametrize("rows", [0, -1])
def test_fewer_than_one_row_is_refused(rows: int) -> None:
    with pytest.raises(DataError) as caught:
        open_data("tiles", rows=rows)
    assert caught.value.message == f"rows: got {rows}, expected at least 1"


def test_too_few_rows_are_refused_with_the_counts() -> None:
    x = normal(60, 3)
    u = unit_interval(row_hashes(x, 0))
    counts = [int((u < 0.6).sum()), int(((u >= 0.6) & (u < 0.8)).sum()), int((u >= 0.8).sum())]
    with pytest.raises(DataError) as caught:
        as_data(x)
    assert caught.value.message == (
        f"data: got {min(counts[0], 30)} calibration, {counts[1]} selection and {counts[2]} verification rows, "
        "expected at least 30, 20 and 20"
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_rows_is_one_line_of_error(count: int) -> None:
    with pytest.raises(DataError):
        as_data(normal(count, 3))


def test_thirty_and_twenty_rows_are_enough(tmp_path: Path) -> None:
    x, y = normal(30, 3), normal(200, 3, seed=1)
    u = unit_interval(row_hashes(y, 0))
    y = np.concatenate([y[u < 0.5][:20], y[u >= 0.5][:20]])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = open_data(tmp_path / "x.npy", tmp_path / "y.npy")
    assert [len(held(getattr(data, name))) for name in SETS] == [30, 20, 20]
    np.save(tmp_path / "x.npy", x[:29])
    with pytest.raises(DataError, match="got 29 calibration, 20 selection and 20 verification rows"):
        open_data(tmp_path / "x.npy", tmp_path / "y.npy")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y[1:])
    with pytest.raises(DataError, match="got 30 calibration, 19 selection and 20 verification rows"):
        open_data(tmp_path / "x.npy", tmp_path / "y.npy")


@pytest.mark.parametrize("at", [0, 150, 299])
def test_nan_anywhere_in_the_judging_rows_is_refused(at: int, tmp_path: Path) -> None:
    x, y = normal(100, 3), normal(300, 3, seed=1)
    y[at, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(DataError, match=r"y\.npy: NaN or infinite values"):
        open_data(tmp_path / "x.npy", tmp_path / "y.npy")


def test_a_misspelt_name_is_refused_with_what_is_known() -> None:
    with pytest.raises(DataError) as caught:
        open_data("minst")
    assert caught.value.message == (
        "data: got 'minst', expected tiles, mnist, fashion-mnist, an .npy or .npz file, a folder of pictures or "
        "of .npy files, or path/or.module:factory"
    )


@pytest.mark.parametrize("name", ["nothing.npy", "nothing.npz"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / name)
    assert caught.value.message == f"{tmp_path / name}: no such file"


def test_a_generator_is_refused() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.ones(10, 3)

    with pytest.raises(DataError, match="got a generator that can be read only once"):
        as_data(batches())


# Shapes


@pytest.mark.parametrize(("row", "model"), [((28, 28), (1, 28, 28)), ((784,), (1, 28, 28)), ((1, 4, 4), (16,))])
def test_rows_take_the_shape_of_the_model_where_only_its_grouping_differs(
    row: tuple[int, ...], model: tuple[int, ...]
) -> None:
    assert to_shape(row, model, "x.npy") == torch.Size(model)


def test_rows_of_another_size_are_refused_with_both_shapes() -> None:
    with pytest.raises(DataError) as caught:
        to_shape((28, 28), (1, 32, 32), "x.npy")
    assert caught.value.message == "x.npy: rows have shape (28, 28), the model expects (1, 32, 32)"


def test_channels_last_pictures_are_not_silently_taken_for_channels_first() -> None:
    with pytest.raises(DataError):
        to_shape((32, 32, 3), (3, 32, 32), "x.npy")
