from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foreign_models import OwnVAE
from holes import HUGE, SOME, hole, peak
from vaeprune.adapters import adapt
from vaeprune.architectures import BuiltVAE, ConvolutionalVAE, DenseVAE
from vaeprune.data import as_data
from vaeprune.errors import ModelError, StorageError, VaepruneError
from vaeprune.likelihood import Likelihood
from vaeprune.model_folder import (
    ModelFolder,
    check_state_dict,
    describe,
    load,
    read_model_folder,
    training_data,
    write_model_folder,
)
from vaeprune.storage import read_tensors, write_tensors
from vaeprune.training import Epoch, History, TracePoint

HISTORY = History((Epoch(1, 3.0, 2.0, 1.0, (0.5, 0.5), (0.5, 0.5)),), (TracePoint(1, (0.5, 0.25), (0.5, 1.0)),))


def dense() -> DenseVAE:
    torch.manual_seed(0)
    return DenseVAE((1, 2, 2), [3], [5], 2, Likelihood("gaussian", "mean", 0.5))


def convolutional() -> ConvolutionalVAE:
    vae = ConvolutionalVAE((1, 17, 18), [2] * 8, [2] * 8, 2)
    vae.train()
    vae(torch.rand(4, 1, 17, 18))  # running statistics that are not the usual ones
    return vae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model_folder(ModelFolder(dense()), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)


def refused(folder: Path, kind: type[VaepruneError] = StorageError) -> VaepruneError:
    with pytest.raises(kind) as caught:
        read_model_folder(folder)
    return caught.value


# There and back


@pytest.mark.parametrize("vae", [dense(), convolutional()], ids=["dense", "convolutional"])
def test_a_model_comes_back_to_the_bit(tmp_path: Path, vae: BuiltVAE) -> None:
    state = {"generator": torch.arange(4, dtype=torch.uint8), "step:w": torch.tensor(3.0)}
    written = ModelFolder(vae, {"data": "tiles"}, {"from": [1, 2]}, HISTORY, state)
    write_model_folder(written, tmp_path / "model", "# A model\n")
    read = read_model_folder(tmp_path / "model")
    assert type(read.vae) is type(vae)
    assert read.vae.architecture() == vae.architecture()
    assert read.vae.likelihood == vae.likelihood
    assert read.vae.state_dict().keys() == vae.state_dict().keys()
    for name, value in vae.state_dict().items():
        assert torch.equal(read.vae.state_dict()[name], value), name
    assert (read.training, read.shrunk, read.history) == (written.training, written.shrunk, HISTORY)
    assert read.vae.provenance == {"training": {"data": "tiles"}, "shrunk": {"from": [1, 2]}, "history": HISTORY}
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[k], v) for k, v in state.items())
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"


def test_a_loaded_model_is_in_eval_mode_and_can_be_trained_on(folder: Path) -> None:
    vae = load(str(folder))
    assert not vae.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in vae.parameters())
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(vae.encode(x).mean, dense().encode(x).mean)
    vae.decode(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        vae.mean_head.weight.zero_()
    assert load(folder).mean_head.weight.any(), "the file on the disk was changed"


def test_a_folder_holds_only_what_there_is(tmp_path: Path, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert {key: value for key, value in config.items() if value is not None} == {
        "format": 1,
        "architecture": dense().architecture(),
        "likelihood": {"kind": "gaussian", "output": "mean", "scale": 0.5},
    }
    assert {"training", "shrunk"} <= set(config)
    whole = ModelFolder(dense(), None, None, HISTORY, {"generator": torch.zeros(2)})
    write_model_folder(whole, tmp_path / "whole", "card", more=lambda f: (f / "plan.json").write_text("{}"))
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == [
        "README.md", "config.json", "history.json", "model.safetensors", "plan.json", "training_state.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_keep_it(tmp_path: Path, dtype: torch.dtype) -> None:
    vae = dense().to(dtype)
    write_model_folder(ModelFolder(vae), tmp_path / "model")
    assert {p.dtype for p in load(tmp_path / "model").parameters()} == {dtype}
    x = torch.rand(3, 1, 2, 2, dtype=dtype)
    assert torch.equal(load(tmp_path / "model").encode(x).mean, vae.encode(x).mean)


def test_an_existing_folder_is_refused_and_with_force_replaced(folder: Path) -> None:
    other = DenseVAE((4,), [], [], 3)
    with pytest.raises(StorageError, match="model: already exists"):
        write_model_folder(ModelFolder(other), folder)
    assert load(folder).latent_size == 2
    write_model_folder(ModelFolder(other), folder, force=True)
    assert load(folder).latent_size == 3


def test_a_failure_in_the_last_file_leaves_the_old_folder(folder: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError) as caught:
        write_model_folder(ModelFolder(DenseVAE((4,), [], [], 3)), folder, force=True, more=fail)
    assert str(caught.value) == (f"{folder}: cannot be written: No space left on device; free some space and run again")
    assert load(folder).latent_size == 2
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


# Damage


def test_a_missing_folder_is_one_line_of_error(tmp_path: Path) -> None:
    error = refused(tmp_path / "nothing")
    assert error.message == f"{tmp_path / 'nothing'}: no such model folder"
    assert error.hint == "make one with `vaeprune train`, or check the path"
    (tmp_path / "file").write_text("")
    assert "no such model folder" in refused(tmp_path / "file").message


@pytest.mark.parametrize(
    ("name", "what"), [("config.json", "the model's config"), ("model.safetensors", "safetensors")]
)
def test_half_a_folder_is_refused_with_the_missing_file(folder: Path, name: str, what: str) -> None:
    (folder / name).unlink()
    assert refused(folder).message == f"{folder / name}: no such file, expected {what}"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}", '{"architecture": {}}', "null"])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert refused(folder).message.startswith(f"{folder / 'config.json'}: is not ")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], 10**30])
def test_another_format_is_refused_with_both_versions(folder: Path, version: object) -> None:
    change_config(folder, format=version)
    error = refused(folder)
    assert error.message == f"{folder / 'config.json'}: got format {version!r}, this version reads format 1"
    assert error.hint == "use the version of vaeprune that wrote it"


def test_unknown_keys_are_refused(folder: Path) -> None:
    known = sorted(json.loads((folder / "config.json").read_text()))
    change_config(folder, plugins=["os.system"])
    assert refused(folder).message == (
        f"{folder / 'config.json'}: got the keys {sorted([*known, 'plugins'])}, expected {known}"
    )


@pytest.mark.parametrize("key", ["architecture", "likelihood"])
def test_missing_keys_are_refused(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"got the keys {sorted(config)}, expected" in refused(folder).message


@pytest.mark.parametrize("key", ["training", "shrunk"])
@pytest.mark.parametrize("value", [3, "x", [1]])
def test_provenance_that_is_no_object_is_refused(folder: Path, key: str, value: object) -> None:
    change_config(folder, **{key: value})
    assert refused(folder).message == (f"{folder / 'config.json'}: {key} is {value!r}, expected an object or null")


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None},
        {"architecture": {"name": "os.system"}},
        {"architecture": {"name": []}},
        {"architecture": {"name": "dense", "input_shape": [4]}},
        {"architecture": dense().architecture() | {"hook": "x"}},
        {"architecture": dense().architecture() | {"latent_size": -1}},
        {"likelihood": None},
        {"likelihood": {"kind": "poisson"}},
        {"likelihood": {"kind": "gaussian", "scale": -1.0}},
    ],
)
def test_an_architecture_or_likelihood_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder, **changes)
    refused(folder, VaepruneError)


def test_no_import_path_is_taken_from_a_file(folder: Path) -> None:
    entry = {
        "factory": "os:abort", "arguments": {}, "attributes": {}, "made_plain": [], "reading": {},
        "input_shape": [1, 2, 2], "latent_shape": [2],
    }  # fmt: skip
    change_config(folder, architecture=None, foreign=entry)
    error = refused(folder, ModelError)
    assert "no import path is taken from a file" in error.message
    assert error.hint.startswith("name the class: --factory ")


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_widths": [2**21]},
        {"input_shape": [2**20, 2**10], "encoder_widths": [2**10]},
        {"input_shape": [2**20, 2**10], "encoder_widths": [2**31 - 1]},
        {"decoder_widths": [2**30, 2**15]},
    ],
)
def test_a_config_that_promises_terabytes_allocates_nothing(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder, architecture=dense().architecture() | changes)
    assert "has shape" in refused(folder, ModelError).message


def test_all_that_does_not_fit_is_listed_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["encoder.0.bias"]
        tensors["extra.weight"] = torch.ones(1)
        tensors["output.weight"] = torch.ones(4, 6)
        tensors["mean_head.weight"] = torch.ones(2, 3, dtype=torch.int64)

    change_weights(folder, spoil)
    error = refused(folder, ModelError)
    assert error.message == (
        f"{folder / 'model.safetensors'}: does not fit its config: mean_head.weight is torch.int64, expected a "
        "floating point type; missing encoder.0.bias; output.weight has shape (4, 6), expected (4, 5); "
        "unexpected extra.weight"
    )
    assert error.hint == "restore both from one source"


def test_a_state_dict_that_fits_passes_the_check() -> None:
    check_state_dict(dense().state_dict(), dense().double().state_dict(), "here")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["output.bias"][2] = value

    change_weights(folder, spoil)
    assert refused(folder).message == f"{folder / 'model.safetensors'}: NaN or infinite values in output.bias"


def test_weights_of_a_type_without_arithmetic_are_one_line_of_error(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["output.bias"] = tensors["output.bias"].to(torch.float8_e4m3fn)

    change_weights(folder, spoil)
    refused(folder, VaepruneError)


def test_weights_of_mixed_precision_are_refused_or_work(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["mean_head.weight"] = tensors["mean_head.weight"].half()

    change_weights(folder, spoil)
    try:
        vae = load(folder)
    except VaepruneError:
        return
    vae.encode(torch.rand(2, 1, 2, 2))


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_tensors_are_refused(folder: Path, name: str, kept: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / name).write_bytes(whole[:kept])
    error = refused(folder)
    assert error.message.startswith(f"{folder / name}: is not a complete safetensors file: ")
    assert error.hint == "it may be truncated; copy it again"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "epochs": [{}], "trace": []}'])
def test_a_damaged_history_is_refused(folder: Path, text: str) -> None:
    (folder / "history.json").write_text(text)
    assert refused(folder).message.startswith(f"{folder / 'history.json'}: ")


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.safetensors", "config.json", "history.json"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_in_any_place_is_never_unpickled(folder: Path, name: str, how: str) -> None:
    value = {"w": Canary(folder.parent / "canary")}
    if how == "pickle":
        (folder / name).write_bytes(pickle.dumps(value))
    else:
        torch.save(value, folder / name)
    refused(folder)
    assert not (folder.parent / "canary").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "checkpoint.ckpt"])
def test_a_pickled_checkpoint_is_no_substitute_for_the_weights(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Canary(folder.parent / "canary")}, folder / name)
    assert refused(folder).message == f"{folder / 'model.safetensors'}: no such file, expected safetensors"
    assert not (folder.parent / "canary").exists()


def test_the_recorded_training_data_never_name_code_to_run(folder: Path) -> None:
    """What this gives is opened as DATA by `export`, and DATA may be an import path."""
    change_config(folder, training={"data": "tiles"})
    assert training_data(folder) == "tiles"
    change_config(folder, training={"data": "model/evil.py:rows"})
    assert training_data(folder) is None


# In words


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        (dense(), "A dense VAE, 3-2 latents-5, gaussian likelihood"),
        (DenseVAE((4,), [], [], 2), "A dense VAE, 2 latents, bernoulli likelihood"),
        (DenseVAE((4,), [7, 6], [], 2), "A dense VAE, 7-6-2 latents, bernoulli likelihood"),
        (
            ConvolutionalVAE((1, 17, 18), [2] * 8, [3] * 8, 4),
            "A convolutional VAE, 2-2-2-2-2-2-2-2-4 latents-3-3-3-3-3-3-3-3, bernoulli likelihood",
        ),
    ],
)
def test_a_model_is_described_by_its_widths(vae: BuiltVAE, words: str) -> None:
    assert describe(vae) == words


# Replaced while it is read


def test_a_folder_that_is_replaced_while_it_is_read_gives_no_mixture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both fit the config that was read first, so nothing but the folder's identity tells them apart."""
    other = dense()
    with torch.no_grad():
        other.output.weight += 1

    def replaced_first(path: Path, *arguments: Any) -> dict[str, Tensor]:
        monkeypatch.setattr("vaeprune.model_folder.read_tensors", read_tensors)
        write_model_folder(ModelFolder(other), folder, force=True)
        return read_tensors(path, *arguments)

    monkeypatch.setattr("vaeprune.model_folder.read_tensors", replaced_first)
    assert str(refused(folder)) == f"{folder}: was replaced while it was read; run again"
    assert torch.equal(load(folder).output.weight, other.output.weight)


def test_a_folder_that_is_removed_while_it_is_read_is_said_to_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path, *arguments: Any) -> dict[str, Tensor]:
        shutil.rmtree(folder)
        return read_tensors(path, *arguments)

    monkeypatch.setattr("vaeprune.model_folder.read_tensors", gone)
    assert "was replaced while it was read" in str(refused(folder))


def test_weights_of_gigabytes_for_a_class_of_ones_own_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Which sizes a cut has left is told by the weights alone, so it is their sum that is compared."""
    vae = adapt(OwnVAE(), as_data(torch.randn(200, 8)))
    write_model_folder(ModelFolder(vae), tmp_path / "own")
    shapes = {key: value.shape for key, value in vae.network.state_dict().items()}
    hole(tmp_path / "own" / "model.safetensors", shapes | {"body.weight": HUGE})
    before = peak()
    with pytest.raises(
        ModelError, match=r"model\.safetensors: promises 1,073,7\d\d,\d{3} numbers, where the whole OwnVAE"
    ):
        load(tmp_path / "own", factory=OwnVAE)
    assert peak() - before < SOME


def test_a_training_state_of_gigabytes_is_refused_before_it_is_read(folder: Path) -> None:
    hole(folder / "training_state.safetensors", {"0.exp_avg": HUGE})
    before = peak()
    with pytest.raises(
        ModelError, match=r"training_state\.safetensors: promises 1,073,741,824 numbers, where the whole "
    ):
        load(folder)
    assert peak() - before < SOME


@pytest.mark.parametrize("values", [1 << 29, 1 << 38], ids=["2 GB", "1 TB"])
def test_weights_of_gigabytes_that_do_not_fit_are_refused_before_they_are_read(folder: Path, values: int) -> None:
    """A huge file may be a hole that takes no room on the disk; reading it would."""
    hole(folder / "model.safetensors", {"w": [values]})
    before = peak()
    told = str(refused(folder, VaepruneError))
    assert "does not fit its config: missing" in told or "unable to mmap" in told
    assert peak() - before < SOME
