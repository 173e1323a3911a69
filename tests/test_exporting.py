from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planted import dense, rows
from vaeprune import exporting
from vaeprune.architectures import DenseVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ExportError, OnnxMismatch, StorageError
from vaeprune.evidence import Tolerances
from vaeprune.exporting import export
from vaeprune.onnx_export import OnnxErrors, onnx_errors

Measured = Callable[..., None]


@pytest.fixture
def vae() -> DenseVAE:
    return dense([1])


@pytest.fixture
def data() -> DataSets:
    return as_data(rows())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Files that are written at once and differ from PyTorch as a test says."""

    def write(_vae: DenseVAE, folder: Path) -> None:
        for name in ("encoder.onnx", "decoder.onnx"):
            (folder / name).write_bytes(b"onnx")

    def set_errors(*errors: float) -> None:
        monkeypatch.setattr(exporting, "export_onnx", write)
        monkeypatch.setattr(exporting, "onnx_errors", lambda *_: OnnxErrors(*errors))

    return set_errors


def test_a_folder_with_both_files_appears_once_they_were_run(vae: DenseVAE, data: DataSets, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    errors, paths = export(vae, data, out, tolerances=Tolerances(onnx=1e-4))
    assert paths == (out / "encoder.onnx", out / "decoder.onnx")
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    assert list(out.parent.iterdir()) == [out]
    assert errors.encoder_max_abs_error <= 1e-4 * errors.encoder_range
    assert onnx_errors(vae, out, data.verify) == errors


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ((0.5, 0.0, 2.0, 1.0), "encoder.onnx: differs from PyTorch by 0.5, allowed are 0.1 of the range 2"),
        ((0.0, 0.11, 2.0, 1.0), "decoder.onnx: differs from PyTorch by 0.11, allowed are 0.1 of the range 1"),
        ((0.0, float("inf"), 2.0, 1.0), "decoder.onnx: differs from PyTorch by inf, allowed are 0.1 of the range 1"),
        ((float("nan"), 0.0, 2.0, 1.0), "encoder.onnx: differs from PyTorch by nan, allowed are 0.1 of the range 2"),
        ((1e-3, 0.0, 0.0, 1.0), "encoder.onnx: differs from PyTorch by 0.001, allowed are 0.1 of the range 0"),
    ],
)
def test_files_that_differ_leave_nothing(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured, errors: tuple[float, ...], message: str
) -> None:
    measured(*errors)
    with pytest.raises(OnnxMismatch) as error:
        export(vae, data, tmp_path / "out", tolerances=Tolerances(onnx=0.1))
    assert str(error.value) == f"{message}; nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_a_share_of_the_range(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    measured(0.2, 0.1, 2.0, 1.0)
    export(vae, data, tmp_path / "out", tolerances=Tolerances(onnx=0.1))
    assert (tmp_path / "out" / "encoder.onnx").is_file()


@pytest.mark.parametrize("failure", [ExportError("it broke"), RuntimeError("it broke"), KeyboardInterrupt()], ids=repr)
def test_a_failure_halfway_leaves_nothing(
    vae: DenseVAE,
    data: DataSets,
    tmp_path: Path,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    measured(0.0, 0.0, 1.0, 1.0)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(exporting, "onnx_errors", fail)
    with pytest.raises(type(failure)):
        export(vae, data, tmp_path / "out", tolerances=Tolerances(onnx=0.1))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_any_work(
    vae: DenseVAE, data: DataSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export_onnx", None)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(StorageError) as error:
        export(vae, data, tmp_path, tolerances=Tolerances(onnx=0.1))
    assert str(error.value) == f"{tmp_path}: already exists; choose another name or pass --force to replace it"
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_force_replaces_an_earlier_export_and_a_failed_one_keeps_it(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    out = tmp_path / "out"
    measured(0.0, 0.0, 1.0, 1.0)
    export(vae, data, out, tolerances=Tolerances(onnx=0.1))
    (out / "encoder.onnx").write_bytes(b"old")
    measured(9.0, 0.0, 1.0, 1.0)
    with pytest.raises(OnnxMismatch):
        export(vae, data, out, tolerances=Tolerances(onnx=0.1), force=True)
    assert (out / "encoder.onnx").read_bytes() == b"old"
    measured(0.0, 0.0, 1.0, 1.0)
    export(vae, data, out, tolerances=Tolerances(onnx=0.1), force=True)
    assert (out / "encoder.onnx").read_bytes() == b"onnx"
    assert list(tmp_path.iterdir()) == [out]


def test_force_does_not_replace_somebody_elses_folder(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    measured(0.0, 0.0, 1.0, 1.0)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="is not empty and not a model folder"):
        export(vae, data, tmp_path, tolerances=Tolerances(onnx=0.1), force=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_files_are_checked_on_the_verify_rows(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(0.0, 0.0, 1.0, 1.0)
    seen: list[torch.Tensor] = []

    def look(_vae: DenseVAE, _folder: Path, given: object) -> OnnxErrors:
        seen.extend(x for (x,) in given.batches(1000))
        return OnnxErrors(0.0, 0.0, 1.0, 1.0)

    monkeypatch.setattr(exporting, "onnx_errors", look)
    export(vae, data, tmp_path / "out", tolerances=Tolerances(onnx=0.1))
    assert torch.equal(torch.cat(seen), torch.cat([x for (x,) in data.verify.batches(1000)]))
