"""Weights as people save them: wrappers, prefixes, everything that does not fit at once, and never any code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from foreign_models import OwnVAE
from holes import HUGE, SOME, hole, peak
from vaeprune.adapters.checkpoint import load_checkpoint, load_into, read_checkpoint
from vaeprune.errors import ModelError, StorageError


class Boobytrap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.fixture
def trained() -> OwnVAE:
    torch.manual_seed(3)
    return OwnVAE()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ckpt.pt"


def assert_loads(found: dict[str, Tensor], trained: nn.Module) -> None:
    network = OwnVAE()
    load_into(network, found, "ckpt.pt")
    for key, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


WRAPPERS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "model": lambda s: {"model": s, "loss": 0.5},
    "nested": lambda s: {"model_states": {"net": s}},
    "deep": lambda s: {"model": {"state_dict": s}},
    "scalars beside": lambda s: {"state_dict": s, "step": torch.tensor(4)},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_state_dict_is_found_inside_wrappers(wrap: Any, trained: OwnVAE, path: Path) -> None:
    torch.save(wrap(trained.state_dict()), path)
    assert_loads(read_checkpoint(path), trained)


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "module.model.", "net.", "model.vae."])
def test_prefixes_are_stripped(prefix: str, trained: OwnVAE, path: Path) -> None:
    torch.save({"state_dict": {prefix + k: v for k, v in trained.state_dict().items()}}, path)
    assert_loads(read_checkpoint(path), trained)


def test_what_a_training_module_holds_beside_the_model_is_left_out(trained: OwnVAE, path: Path) -> None:
    state = {"model." + k: v for k, v in trained.state_dict().items()} | {"metric.total": torch.zeros(3)}
    torch.save({"state_dict": state}, path)
    assert_loads(read_checkpoint(path), trained)


def test_a_model_with_a_part_called_model_keeps_its_keys() -> None:
    network = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    load_into(network, {k: torch.ones_like(v) for k, v in network.state_dict().items()}, "ckpt.pt")
    assert (network["model"].weight == 1).all()


def test_safetensors_are_read(trained: OwnVAE, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    assert_loads(read_checkpoint(path), trained)


def test_missing_unexpected_and_mismatched_keys_are_told_at_once_and_nothing_is_loaded(trained: OwnVAE) -> None:
    state = dict(trained.state_dict())
    del state["body.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["fc_mu.weight"] = torch.zeros(6, 7)
    network = OwnVAE()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_into(network, state, "ckpt.pt")
    words = str(caught.value)
    assert words.startswith("ckpt.pt: does not fit the model: ")
    assert "missing body.bias" in words
    assert "unexpected extra.weight" in words
    assert "fc_mu.weight has shape (6, 7), the model expects (5, 7)" in words
    assert "--model-arg" in words
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_weights_of_another_class_ask_whose_they_are() -> None:
    with pytest.raises(ModelError, match=r"missing body\.weight.*is it the checkpoint of this class"):
        load_into(OwnVAE(), nn.Linear(2, 2).state_dict(), "ckpt.pt")


def test_nan_in_weights_is_refused(trained: OwnVAE) -> None:
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    state["fc_mu.bias"][1] = float("nan")
    with pytest.raises((ModelError, StorageError), match=r"fc_mu\.bias"):
        load_into(OwnVAE(), state, "ckpt.pt")


# ---- never any code


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_canary_never_runs(legacy: bool, tmp_path: Path, path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": Boobytrap(canary)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(StorageError, match="holds more than tensors, and a checkpoint is never unpickled") as error:
        read_checkpoint(path)
    assert not canary.exists()
    assert "weights_only" not in error.value.message


def test_a_bare_pickle_is_refused_by_what_it_calls_and_nobody_is_told_to_load_it_all_the_same(
    path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path.write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(StorageError) as error:
        read_checkpoint(path)
    assert "posix.system" in error.value.message
    assert "weights_only" not in error.value.message
    assert not recwarn.list


@pytest.mark.parametrize("content", [b"\x80\x02\x85.", b"\x80\x02X\x01", b"\x80\x02K\x01K\x02s.", b"\x80\x02"])
def test_a_pickle_that_ends_early_or_asks_for_what_is_not_there_is_no_checkpoint(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageError):
        read_checkpoint(path)


def test_a_whole_pickled_model_is_refused_with_what_to_save(trained: OwnVAE, path: Path) -> None:
    torch.save(trained, path)
    with pytest.raises(StorageError, match=r"never unpickled.*torch\.save\(model\.state_dict\(\), path\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"ckpt\.pt: "):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(trained: OwnVAE, path: Path) -> None:
    torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(StorageError, match=r"ckpt\.pt: "):
        read_checkpoint(path)


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(StorageError, match=r"ckpt\.pt: no such file, expected a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2), {"state_dict": {}}])
def test_a_checkpoint_without_a_state_dict_is_refused(content: Any, path: Path) -> None:
    torch.save(content, path)
    with pytest.raises(StorageError, match=r"ckpt\.pt: holds no state dict"):
        read_checkpoint(path)


def test_a_wrapper_that_holds_itself_ends(path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = {"epoch": 1, "state_dict": loop}
    torch.save({"model": {"model": {"model": {}}}}, path)
    with pytest.raises(StorageError, match="holds no state dict"):
        read_checkpoint(path)


# ---- files that promise more than they may


def shapes(prefix: str = "") -> dict[str, Sequence[int]]:
    return {prefix + key: value.shape for key, value in OwnVAE().state_dict().items()}


def test_gigabytes_beside_the_weights_are_not_read(tmp_path: Path) -> None:
    path, network, before = tmp_path / "all.safetensors", OwnVAE(), peak()
    hole(path, {**shapes("vae."), "unet.weight": HUGE})
    load_checkpoint(network, path)
    assert not any(value.any() for value in network.state_dict().values())
    assert peak() - before < SOME


def test_gigabytes_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path, network, before = tmp_path / "huge.safetensors", OwnVAE(), peak()
    hole(path, {**shapes(), "body.weight": HUGE})
    with pytest.raises(ModelError, match=r"body\.weight has shape \(32768, 32768\), the model expects \(7, 8\)"):
        load_checkpoint(network, path)
    assert peak() - before < SOME


def test_of_a_checkpoint_of_torch_that_does_not_fit_no_value_is_read(
    trained: OwnVAE, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[object] = []
    load = torch.load

    def looking(*arguments: Any, map_location: object, **named: Any) -> Any:
        places.append(map_location)
        return load(*arguments, map_location=map_location, **named)

    torch.save({"state_dict": trained.state_dict() | {"body.weight": torch.zeros(9, 9)}}, path)
    monkeypatch.setattr(torch, "load", looking)
    with pytest.raises(ModelError, match=r"body\.weight has shape \(9, 9\), the model expects \(7, 8\)"):
        load_checkpoint(OwnVAE(), path)
    assert places == ["meta"]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_torch_that_fits_is_loaded(legacy: bool, trained: OwnVAE, path: Path) -> None:
    torch.save({"model": trained.state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    network = OwnVAE()
    load_checkpoint(network, path)
    for key, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
