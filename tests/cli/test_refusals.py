"""Bad input: one line on stderr, exit 2, an error object with --json, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from vaeprune.architectures.dense import DenseVAE
from vaeprune.data import tiles
from vaeprune.likelihood import Likelihood
from vaeprune.model_folder import ModelFolder, write_model_folder
from vaeprune.storage import read_tensors

WEIGHTS = "model.safetensors"
SMALL = ("--hidden", "16,8", "--latent", 4, "--epochs", 1)


class Boobytrap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def images(count: int = 200) -> np.ndarray:
    return tiles(count, seed=8).numpy()


# --- the model


def every_command(model: object, rows: Path) -> list[tuple]:
    """A command line for each way a model folder is read."""
    return [
        ("analyze", model, "--data", rows),
        ("shrink", model, "--data", rows, "--out", "new"),
        ("verify", model, model, "--data", rows),
        ("export", model, "--data", rows, "--out", "new"),
        ("encode", model, "--data", rows, "--out", "z.npy"),
        ("train", "--resume", "--out", model, "--epochs", 9),
    ]


@pytest.mark.parametrize("which", range(6), ids=["analyze", "shrink", "verify", "export", "encode", "resume"])
def test_missing_model_folder(rows, refused, which):
    error = refused(*every_command("nowhere", rows)[which])
    assert error == {
        "type": "StorageError",
        "message": "nowhere: no such model folder",
        "hint": "make one with `vaeprune train`, or check the path",
    }


def test_missing_second_model(idle_model, rows, refused):
    refused("verify", idle_model, "nowhere", "--data", rows, told=["nowhere: no such model folder"])


def test_file_in_place_of_a_model_folder(rows, refused):
    refused("analyze", rows, "--data", rows, told=[f"{rows}: no such model folder"])


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (["config.json"], "config.json: no such file, expected the model's config"),
        ([WEIGHTS], f"{WEIGHTS}: no such file, expected safetensors"),
        (["config.json", WEIGHTS], "config.json: no such file, expected the model's config"),
    ],
    ids=["config", "weights", "both"],
)
def test_half_written_folder(idle_model, rows, copied, refused, gone, told):
    model = copied(idle_model)
    for name in gone:
        (model / name).unlink()
    refused("analyze", model, "--data", rows, told=[f"{model}/{told}"])


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_other_format_version(idle_model, rows, changed_config, refused, version):
    model = changed_config(idle_model, format=version)
    error = refused("analyze", model, "--data", rows)
    assert error["message"] == f"{model}/config.json: got format {version!r}, this version reads format 1"
    assert error["hint"] == "use the version of vaeprune that wrote it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not valid JSON"),
        ('{"format": 1', "is not valid JSON"),
        ('{"format": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "is not a model's config"),
        ('{"format": 1}', "got the keys ['format'], expected"),
        (b"\xff\xfe", "cannot be read as the "),
    ],
    ids=["empty", "cut", "nan", "deep", "list", "keys", "bytes"],
)
def test_damaged_config(idle_model, rows, copied, refused, text, told):
    model = copied(idle_model)
    (model / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("analyze", model, "--data", rows, told=[f"{model}/config.json: ", told])


DENSE = {"name": "dense", "input_shape": [1, 28, 28], "encoder_widths": [32, 16], "decoder_widths": [16, 32]}


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ({"name": "transformer"}, "architecture: got 'transformer', expected one of convolutional, dense"),
        ({"name": ["dense"]}, "architecture: got ['dense']"),
        ("dense", "architecture: got 'dense'"),
        (DENSE, "expected ['decoder_widths', 'encoder_widths', 'input_shape', 'latent_size']"),
        (DENSE | {"latent_size": 6, "activation": "gelu"}, "architecture dense: got ['activation', "),
        (DENSE | {"latent_size": 0}, "latent_size: got [0], expected a list of positive whole numbers"),
        (DENSE | {"latent_size": 6.0}, "latent_size: got [6.0], expected a list of positive whole numbers"),
        (DENSE | {"latent_size": True}, "latent_size: got [True]"),
        (DENSE | {"latent_size": 7}, "mean_head.weight has shape (6, 16), expected (7, 16)"),
        (DENSE | {"latent_size": 2**31 - 1}, "2147483647"),
        (DENSE | {"latent_size": 6, "encoder_widths": "wide"}, "encoder_widths: got 'wide'"),
        (
            DENSE | {"latent_size": 6, "encoder_widths": [2**31 - 1, 2**31 - 1]},
            "encoder_widths: got [2147483647, 2147483647]",
        ),
    ],
    ids=["name", "list", "text", "less", "more", "zero", "float", "bool", "shape", "huge", "word", "product"],
)
def test_config_that_means_no_network(idle_model, rows, changed_config, refused, architecture, told):
    model = changed_config(idle_model, architecture=architecture)
    refused("analyze", model, "--data", rows, told=[told])


@pytest.mark.parametrize(
    ("likelihood", "told"),
    [
        ({"kind": "poisson"}, "likelihood: got 'poisson', expected 'bernoulli' or 'gaussian'"),
        ({"kind": ["bernoulli"]}, "likelihood: got ['bernoulli']"),
        ({"kind": "gaussian", "scale": 0}, "likelihood scale: got 0.0, expected a positive finite number"),
        ({"kind": "gaussian", "scale": "1"}, "likelihood scale: got '1', expected a number"),
        ({"kind": "gaussian", "scale": 10**400}, "likelihood scale"),
        (None, "likelihood: got None"),
    ],
    ids=["kind", "list", "zero", "text", "huge", "null"],
)
def test_config_with_a_senseless_likelihood(idle_model, rows, changed_config, refused, likelihood, told):
    refused("analyze", changed_config(idle_model, likelihood=likelihood), "--data", rows, told=[told])


@pytest.mark.parametrize("entry", ["training", "shrunk"])
def test_provenance_of_the_wrong_type(idle_model, rows, changed_config, refused, entry):
    told = f"config.json: {entry} is ['x'], expected an object or null"
    refused("analyze", changed_config(idle_model, **{entry: ["x"]}), "--data", rows, told=[told])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(idle_model, rows, copied, refused, share):
    model = copied(idle_model)
    whole = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    told = [f"{model / WEIGHTS}: is not a complete safetensors file", "it may be truncated; copy it again"]
    refused("analyze", model, "--data", rows, told=told)


def reweighted(model: Path, change) -> Path:
    """Replace tensors of a model folder; None takes one away."""
    tensors = read_tensors(model / WEIGHTS)
    tensors |= change(tensors)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if v is not None}, model / WEIGHTS)
    return model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: {"mean_head.weight": torch.zeros(5, 16), "mean_head.bias": torch.zeros(5)},
            "does not fit its config: mean_head.bias has shape (5,), expected (6,); mean_head.weight has shape (5, 16)",
        ),
        (lambda t: {"output.bias": None}, "does not fit its config: missing output.bias"),
        (lambda t: {"extra": torch.zeros(1)}, "does not fit its config: unexpected extra"),
        (
            lambda t: {"output.bias": torch.zeros(784, dtype=torch.int64)},
            "does not fit its config: output.bias is torch.int64, expected a floating point type",
        ),
        (lambda t: {"output.bias": t["output.bias"] * torch.nan}, "NaN or infinite values in output.bias"),
        (lambda t: {"output.bias": t["output.bias"] + torch.inf}, "NaN or infinite values in output.bias"),
        (lambda t: {"e\x1b[31mvil\n": torch.zeros(1)}, r"does not fit its config: unexpected e\x1b[31mvil\n"),
    ],
    ids=["shape", "missing", "unexpected", "integers", "nan", "infinity", "escape"],
)
def test_weights_that_do_not_fit(idle_model, rows, copied, refused, change, told):
    model = reweighted(copied(idle_model), change)
    refused("analyze", model, "--data", rows, told=[f"{model / WEIGHTS}: {told}"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_measured_as_they_are(vaeprune, idle_model, rows, copied, dtype):
    model = reweighted(copied(idle_model), lambda t: {k: v.to(dtype) for k, v in t.items()})
    ran = vaeprune("analyze", model, "--data", rows, "--json")
    assert ran.code == 0, ran.err
    assert [latent["index"] for latent in ran.json["latents"] if latent["verdict"] == "inactive"] == [1, 4]


def test_weights_of_mixed_precision_are_refused(idle_model, rows, copied, refused):
    model = reweighted(copied(idle_model), lambda t: {"output.weight": t["output.weight"].double()})
    refused("analyze", model, "--data", rows, told=["torch.float64"])


# --- nothing in a file is executed


def test_pickled_weights_are_not_executed(idle_model, rows, copied, refused, tmp_path):
    canary = tmp_path / "canary"
    model = copied(idle_model)
    for dump in (lambda f: pickle.dump(Boobytrap(canary), f), lambda f: torch.save({"w": Boobytrap(canary)}, f)):
        with (model / WEIGHTS).open("wb") as file:
            dump(file)
        refused("analyze", model, "--data", rows, told=["is not a complete safetensors file"])
        assert not canary.exists()


def test_pickled_training_state_is_not_executed(training, copied, refused, tmp_path):
    canary = tmp_path / "canary"
    model = copied(training)
    (model / "training_state.safetensors").write_bytes(pickle.dumps(Boobytrap(canary)))
    refused("train", "--resume", "--out", model, "--epochs", 3, told=["is not a complete safetensors file"])
    assert not canary.exists()


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
def test_pickled_rows_are_not_executed(idle_model, refused, tmp_path, name):
    canary = tmp_path / "canary"
    trap = np.empty((300, 2), dtype=object)
    trap[:] = Boobytrap(canary)
    if name.endswith("npz"):
        np.savez(name, x=trap)
    else:
        np.save(name, trap)
    refused("analyze", idle_model, "--data", name, told=[f"{name}: holds Python objects, which are never unpickled"])
    assert not canary.exists()


@pytest.fixture
def poisoned(changed_config, tmp_path):
    """A copy of a model folder whose config names code as its training data, and the file that code leaves behind."""
    canary = tmp_path / "canary"
    code = tmp_path / "evil.py"
    code.write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\ndef rows(): return None\n")

    def poison(model: Path) -> tuple[Path, Path]:
        known = json.loads((model / "config.json").read_text())["training"]
        return changed_config(model, training=known | {"data": f"{code}:rows"}), canary

    return poison


def test_import_path_in_a_config_is_not_executed_by_export(busy_model, vaeprune, poisoned):
    """User code runs only when its import path is typed on the command line."""
    model, canary = poisoned(busy_model)
    ran = vaeprune("export", model, "--out", "files")
    assert not canary.exists()
    assert ran.code == 2


def test_import_path_in_a_config_is_not_executed_by_resume(training, vaeprune, poisoned):
    model, canary = poisoned(training)
    ran = vaeprune("train", "--resume", "--out", model, "--epochs", 3)
    assert not canary.exists()
    assert ran.code == 2


def test_import_path_in_a_config_is_not_executed_by_any_other_command(busy_model, rows, vaeprune, poisoned):
    model, canary = poisoned(busy_model)
    assert vaeprune("analyze", model, "--data", rows).code == 0
    assert vaeprune("encode", model, "--data", rows, "--out", "z.npy").code == 0
    assert vaeprune("verify", model, busy_model, "--data", rows, "--quiet").code == 0
    assert not canary.exists()


def test_the_canary_can_sing(tmp_path):
    pickle.loads(pickle.dumps(Boobytrap(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


# --- the data


def bad_rows(value: float) -> np.ndarray:
    rows = images() / np.float32(255)
    rows[::2, 3, 4] = value  # in each of the three sets
    return rows


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (bad_rows(np.nan), "data.npy: NaN or infinite values"),
        (bad_rows(np.inf), "data.npy: NaN or infinite values"),
        (bad_rows(1.5), "data.npy: got values in [0, 1.5], the Bernoulli likelihood expects [0, 1]; scale the data"),
        (images()[:, :27], "data.npy: rows have shape (27, 28), the model expects (1, 28, 28)"),
        (images().astype(np.int64), "data.npy: got values of type int64, expected uint8 (scaled to [0, 1]) or floats"),
        (images().astype(complex), "data.npy: got values of type complex128"),
        (images().astype(str), "data.npy: got values of type <U3"),
        (images()[:0], "data.npy: is empty, expected at least one row"),
        (images()[:, :0], "data.npy: got an array of shape (200, 0, 28), expected (rows, ...)"),
        (images()[:, 0, 0], "data.npy: got an array of shape (200,), expected (rows, ...)"),
        (np.float32(1), "data.npy: got an array of shape (), expected (rows, ...)"),
        (images(20), "expected at least 30, 20 and 20; give more rows"),
        (images(1), "data.npy"),
        (np.asfortranarray(images()), "data.npy: is stored column by column; save it again with numpy.ascontig"),
    ],
    ids=[
        "nan", "infinity", "range", "shape", "int64", "complex", "text", "empty", "no-pixels", "flat", "scalar", "few",
        "one", "fortran",
    ],
)  # fmt: skip
def test_rows_that_cannot_be_measured(idle_model, refused, array, told):
    np.save("data.npy", array)
    refused("analyze", idle_model, "--data", "data.npy", told=[told])
    refused("shrink", idle_model, "--data", "data.npy", "--out", "new", told=[told])


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (bad_rows(np.nan), "data.npy: NaN or infinite values"),
        (bad_rows(1.5), "data.npy"),
        (images().astype(np.int64), "data.npy: got values of type int64"),
        (images()[:0], "data.npy: is empty, expected at least one row"),
        (images()[:, 0, 0], "data.npy: got an array of shape (200,)"),
    ],
    ids=["nan", "range", "int64", "empty", "flat"],
)
def test_rows_that_cannot_be_trained_on(refused, array, told):
    np.save("data.npy", array)
    refused("train", "--data", "data.npy", *SMALL, "--out", "new", told=[told])


def test_convolutional_network_wants_pictures(refused):
    np.save("data.npy", images().reshape(200, 784))
    words = ("train", "--data", "data.npy", "--arch", "convolutional", "--epochs", 1, "--out", "new")
    refused(*words, told=["input_shape"])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            "minst",
            "data: got 'minst', expected tiles, mnist, fashion-mnist, an .npy or .npz file, a folder of pictures",
        ),
        ("", "data: got "),
        ("nowhere.npy", "nowhere.npy: no such file"),
        ("nowhere.npz", "nowhere.npz: no such file"),
        ("rows.csv", "data: got 'rows.csv', expected"),
        ("nowhere.py:rows", "nowhere.py"),
        ("nowhere:rows", "nowhere:rows: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_unknown_data(idle_model, refused, data, told):
    refused("analyze", idle_model, "--data", data, told=[told])
    refused("train", "--data", data, *SMALL, "--out", "new", told=[told])


def test_truncated_array(idle_model, rows, refused):
    whole = rows.read_bytes()
    Path("data.npy").write_bytes(whole[: len(whole) // 2])
    told = ["data.npy: holds 235,136 bytes of rows, its header promises 470,400; the file is truncated; copy it again"]
    refused("analyze", idle_model, "--data", "data.npy", told=told)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"x" * 1000], ids=["0", "magic", "zip", "x"])
@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_garbage_in_place_of_an_array(idle_model, refused, name, content):
    Path(name).write_bytes(content)
    refused("analyze", idle_model, "--data", name, told=[f"{name}: is not a readable {name[4:]}"])


def test_archive_of_several_arrays(idle_model, refused):
    np.savez("data.npz", train=images(), test=images())
    told = "data.npz: holds the arrays train, test; expected one, or one of them named x; save the rows alone as .npy"
    refused("analyze", idle_model, "--data", "data.npz", told=[told])


def test_held_out_rows_of_another_shape(idle_model, rows, refused):
    np.save("other.npy", images()[:, :14])
    told = f"other.npy: rows have shape (14, 28), those of {rows} (28, 28)"
    refused("analyze", idle_model, "--data", rows, "--held-out", "other.npy", told=[told])


def test_folder_without_pictures(idle_model, refused):
    Path("pictures").mkdir()
    refused("analyze", idle_model, "--data", "pictures", told=["pictures: holds no pictures, expected .bmp, "])


def test_damaged_picture(idle_model, refused):
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    refused("analyze", idle_model, "--data", "pictures", told=["pictures/a.png: is not a readable picture"])


def test_pictures_of_different_sizes(idle_model, refused):
    Path("pictures").mkdir()
    for name, size in (("a", (28, 28)), ("b", (30, 28))):
        Image.new("L", size).save(f"pictures/{name}.png")
    told = "pictures/b.png: is 30x28 pixels, a.png is 28x28; expected one size; resize the pictures first"
    refused("analyze", idle_model, "--data", "pictures", told=[told])


def test_mnist_that_is_neither_there_nor_to_be_had(vaeprune, idle_model, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    ran = vaeprune("analyze", idle_model, "--data", "mnist", "--data-dir", "datasets", "--json")
    assert ran.code == 2
    assert ran.json["error"]["message"].startswith("mnist: not in datasets and cannot be downloaded or read: ")
    assert "name another folder with --data-dir" in ran.json["error"]["hint"]
    assert len([line for line in ran.err.splitlines() if line.startswith("vaeprune: error: ")]) == 1


# --- options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--latent 0", "latent_size: got [0], expected a list of positive whole numbers"),
        ("--latent -3", "latent_size: got [-3]"),
        ("--latent 1.5", "--latent: got '1.5', expected a whole number or auto"),
        ("--hidden 0", "encoder_widths: got (0,)"),
        ("--hidden 16,-2", "encoder_widths: got (16, -2)"),
        ("--hidden wide", "--hidden: got 'wide', expected whole numbers with commas between"),
        ("--epochs 0", "epochs: got 0, expected at least 1"),
        ("--epochs -1", "epochs: got -1, expected at least 1"),
        ("--epochs many", "Invalid value for '--epochs': Input should be a valid integer"),
        ("--beta nan", "beta: got nan, expected a finite number of at least 0"),
        ("--beta inf", "beta: got inf"),
        ("--beta -1", "beta: got -1.0"),
        ("--rows 0", "rows: got 0, expected at least 1"),
        ("--rows -5", "rows: got -5, expected at least 1"),
        ("--batch-size 1", "batch_size: got 1, expected at least 2"),
        ("--batch-size 0", "batch_size: got 0"),
        ("--learning-rate 0", "learning_rate: got 0.0, expected a positive finite number"),
        ("--learning-rate nan", "learning_rate: got nan"),
        ("--trace-every -1", "trace_every: got -1"),
        ("--seed -1", "seed: got -1, expected at least 0"),
        ("--seed 99999999999999999999", "seed: got 99999999999999999999"),
        ("--likelihood gaussian --scale 0", "likelihood scale: got 0.0"),
        ("--likelihood gaussian --scale nan", "likelihood scale: got nan"),
        ("--likelihood poisson", "'poisson' is not one of 'bernoulli', 'gaussian'"),
        ("--arch transformer", "'transformer' is not one of 'dense', 'convolutional'"),
        ("--kl half", "'half' is not one of 'full', 'quadratic', 'none'"),
        ("--init zeros", "'zeros' is not one of 'glorot', 'torch'"),
        ("--device tpu", "'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
        ("--nope", "No such option: --nope"),
        ("--latents 4", "No such option: --latents"),
        ("more", "Got unexpected extra argument"),
    ],
)
def test_senseless_training_option(rows, refused, options, told):
    refused("train", "--data", rows, *SMALL, "--out", "new", *options.split(), told=[told])


def test_one_row_is_too_few_to_train_on(refused):
    told = "tiles training split: holds 1 row, expected at least 2 to train on"
    refused("train", "--data", "tiles", "--rows", 1, *SMALL, "--out", "new", told=[told])


def test_network_too_large_for_any_memory(refused):
    huge = ("--latent", 2**31 - 1, "--hidden", 20_000)  # 172 TB, more than a process can address
    error = refused("train", "--data", "tiles", "--rows", 100, "--out", "new", *huge)
    assert "memory" in error["message"] or "latent_size" in error["message"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train"], "--out: is missing; name the model folder to write"),
        (["train", "--out", "new"], "--data: is missing; name the data to train on, like --data tiles"),
        (["analyze"], "Missing argument 'MODEL...'"),
        (["analyze", "m"], "Missing option '--data'"),
        (["encode", "m", "--data", "tiles"], "Missing option '--out'"),
        (["export", "m"], "Missing option '--out'"),
        (["verify", "m", "--data", "tiles"], "Missing argument 'B'"),
        (["analyse", "m"], "No such command 'analyse'"),
        (["--nope"], "No such option: --nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_incomplete_command_line(refused, command, told):
    refused(*command, told=[told])


def test_option_without_its_value(vaeprune):
    ran = vaeprune("analyze", "m", "--json", "--data")
    assert ran.code == 2
    assert ran.err == "vaeprune: error: Option '--data' requires an argument.; see --help\n"
    assert ran.json["error"]["type"] == "UsageError"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--rows 0", "rows: got 0, expected at least 1"),
        ("--rows -5", "rows: got -5, expected at least 1"),
        ("--rows few", "Invalid value for '--rows': Input should be a valid integer"),
        ("--seed -1", "seed: got -1"),
        ("--ablate some", "'some' is not one of 'all', 'candidates', 'none'"),
        ("--max-variance 0", "threshold variance: got 0.0, expected a positive finite number"),
        ("--max-variance nan", "threshold variance: got nan"),
        ("--min-posterior-variance -1", "threshold posterior_variance: got -1.0"),
        ("--max-ablation-cost inf", "threshold ablation: got inf"),
        ("--max-noise nan", "threshold noise: got nan"),
    ],
)
def test_senseless_analysis_option(idle_model, rows, refused, options, told):
    refused("analyze", idle_model, "--data", rows, *options.split(), told=[told])
    refused("shrink", idle_model, "--data", rows, "--out", "new", *options.split(), told=[told])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--tolerance nan", "tolerance output: got nan, expected a finite number of at least 0"),
        ("--tolerance -1", "tolerance output: got -1.0"),
        ("--max-elbo-loss inf", "tolerance elbo: got inf"),
        ("--onnx-tolerance nan", "tolerance onnx: got nan"),
    ],
)
def test_senseless_tolerance(idle_model, shrunk, rows, refused, options, told):
    refused("shrink", idle_model, "--data", rows, "--out", "new", *options.split(), told=[told])
    refused("verify", idle_model, shrunk, "--data", rows, *options.split(), told=[told])


@pytest.mark.parametrize("rows_wanted", [0, -5])
def test_senseless_number_of_rows_to_encode_or_export(idle_model, rows, refused, rows_wanted):
    told = [f"rows: got {rows_wanted}, expected at least 1"]
    refused("export", idle_model, "--data", rows, "--out", "new", "--rows", rows_wanted, told=told)
    refused("encode", idle_model, "--data", rows, "--out", "z.npy", "--rows", rows_wanted, told=told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_device(idle_model, rows, refused):
    told = "--device cuda: torch finds no such device here; use --device cpu"
    refused("analyze", idle_model, "--data", rows, "--device", "cuda", told=[told])
    refused("train", "--data", rows, "--out", "new", "--device", "cuda", told=[told])


# --- places to write to


WRITERS = ["train", "shrink", "export", "grow", "report", "encode"]


@pytest.mark.parametrize("command", WRITERS)
def test_target_below_a_regular_file(writing, refused, command):
    Path("file").write_text("mine")
    told = "file: is a file, expected a folder to write new into"
    refused(*writing(command, "file/new"), told=[told])


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_target_far_below_a_regular_file(writing, refused, command):
    Path("file").write_text("mine")
    refused(*writing(command, "file/a/new"), told=["file"])


@pytest.mark.parametrize("command", WRITERS)
def test_target_with_too_long_a_name(writing, refused, command):
    refused(*writing(command, "n" * 300), told=["ame too long"])


@pytest.mark.parametrize("command", WRITERS)
def test_dangling_link_in_the_way(writing, refused, command):
    Path("new").symlink_to("nowhere")
    refused(*writing(command, "new"), told=["new: already exists"])


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_full_disk(no_write_beyond, writing, desk, command):
    ran = no_write_beyond(5000, *writing(command, "new"), "--json")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("vaeprune: error: new: cannot be written: ")
    assert ran.json["error"]["type"] == "StorageError"
    assert list(desk.iterdir()) == []


@pytest.mark.slow
def test_full_disk_in_the_second_epoch_keeps_the_first(vaeprune, no_write_beyond, rows, training, copied, contents_of):
    model = copied(training)
    before = contents_of(model.parent)
    ran = no_write_beyond(5000, "train", "--resume", "--out", model, "--epochs", 3, "--quiet")
    assert ran.code == 2
    assert contents_of(model.parent) == before


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_output_onto_a_full_disk(idle_model, rows, options):
    command = [sys.executable, "-m", "vaeprune.cli", "analyze", str(idle_model), "--data", str(rows), *options]
    with FULL.open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr
    assert "this is a bug" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_reader_that_goes_away_is_no_failure(idle_model, rows, options):
    """`vaeprune analyze … | head -1`; exit 1 would say that a gate failed."""
    command = [sys.executable, "-m", "vaeprune.cli", "analyze", str(idle_model), "--data", str(rows), *options]
    reading, writing_end = os.pipe()
    os.close(reading)
    with subprocess.Popen(command, stdout=writing_end, stderr=subprocess.PIPE, text=True) as started:
        os.close(writing_end)
        _, err = started.communicate()
    assert (started.returncode, err) == (0, "")


# --- names that would steer a terminal


EVIL = "e\x1b[31mvil\nall is well\r"
SHOWN = r"e\x1b[31mvil\nall is well\r"


@pytest.mark.parametrize("which", range(6), ids=["analyze", "shrink", "verify", "export", "encode", "resume"])
def test_escape_codes_in_a_missing_name_are_shown(rows, refused, which):
    refused(*every_command(EVIL, rows)[which], told=[f"{SHOWN}: no such model folder"])


def test_escape_codes_in_options_are_shown(idle_model, rows, refused):
    refused("analyze", idle_model, "--data", EVIL, told=["expected tiles"])
    refused("analyze", idle_model, "--data", rows, EVIL)
    refused(EVIL)
    refused("analyze", idle_model, "--data", rows, "--" + EVIL)
    refused("shrink", idle_model, "--data", rows, "--out", "new", "--keep", EVIL)


@pytest.mark.parametrize("command", ["analyze", "encode", "train"])
def test_escape_codes_in_a_good_name_are_shown(vaeprune, idle_model, rows, copied, command):
    model = copied(idle_model, EVIL)
    words = {
        "analyze": ("analyze", model, "--data", rows),
        "encode": ("encode", idle_model, "--data", rows, "--out", EVIL),
        "train": ("train", "--data", rows, *SMALL, "--out", EVIL),
    }[command]
    ran = vaeprune(*words)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out + ran.err
    assert "\r" not in ran.out + ran.err


def test_escape_codes_in_a_downloaded_config_do_not_reach_the_terminal(vaeprune, busy_model, rows, changed_config):
    """The suggested command quotes what the config says the model was trained on."""
    known = json.loads((busy_model / "config.json").read_text())["training"]
    model = changed_config(busy_model, training=known | {"data": EVIL})
    ran = vaeprune("analyze", model, "--data", rows)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "\r" not in ran.out


def test_suggested_command_cannot_be_made_to_run_another(vaeprune, busy_model, rows, changed_config):
    known = json.loads((busy_model / "config.json").read_text())["training"]
    model = changed_config(busy_model, training=known | {"data": "x; touch owned; $(touch owned)"})
    command = vaeprune("analyze", model, "--data", rows, "--json").json["advice"]["command"]
    assert "x; touch owned; $(touch owned)" in shlex.split(command)


@pytest.mark.parametrize("command", ["encode", "train"])
def test_name_that_is_not_unicode(vaeprune, writing, desk, command):
    """Checked with --json: what pytest puts in place of stdout is stricter than a real one."""
    ran = vaeprune(*writing(command, os.fsdecode(b"caf\xe9")), "--json")
    assert ran.code == 0, ran.err
    assert [os.fsencode(p.name) for p in desk.iterdir()] == [b"caf\xe9"]


# --- where and how errors are told


def test_traceback_only_on_request(vaeprune, monkeypatch, rows):
    words = ("analyze", "nowhere", "--data", rows)
    assert "Traceback" not in vaeprune(*words).err
    monkeypatch.setenv("VAEPRUNE_DEBUG", "1")
    asked = vaeprune(*words, "--json")
    assert asked.err.startswith("Traceback (most recent call last):")
    assert asked.err.splitlines()[-1].startswith("vaeprune: error: nowhere: no such model folder")
    assert asked.json["error"]["type"] == "StorageError"


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        ImportError("some.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        OSError(12, "Cannot allocate memory", "rows.npy"),
        caused_by(AttributeError("half a module"), MemoryError()),
    ],
    ids=["python", "torch", "loader", "system", "map", "cause"],
)
def test_too_little_memory_is_one_line(vaeprune, idle_model, rows, monkeypatch, raised):
    monkeypatch.setattr("vaeprune.analysis.analyze", raising(raised))
    ran = vaeprune("analyze", idle_model, "--data", rows)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "vaeprune: error: not enough memory; take fewer rows or a smaller network\n"


def test_an_error_of_the_operating_system_names_its_file(vaeprune, idle_model, rows, monkeypatch):
    error = PermissionError(13, "Permission denied", "some/e\x1b[31mvil")
    monkeypatch.setattr("vaeprune.analysis.analyze", raising(error))
    ran = vaeprune("analyze", idle_model, "--data", rows)
    assert (ran.code, ran.err) == (2, "vaeprune: error: some/e\\x1b[31mvil: Permission denied\n")


def raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


@pytest.fixture
def unexpected(vaeprune, idle_model, rows, tmp_path, monkeypatch):
    """Run a command in which something breaks that nobody thought of."""
    spare = tmp_path / "tmp"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    monkeypatch.setenv("SOME_TOKEN", "hunter2")

    def run(*words):
        secret = "hunter2"
        monkeypatch.setattr("vaeprune.analysis.analyze", raising(ZeroDivisionError("by\nzero")))
        ran = vaeprune("analyze", idle_model, "--data", rows, *words)
        assert secret
        return ran, sorted(spare.iterdir())

    return run


def test_the_unexpected_is_one_line_and_its_traceback_a_file_beside_no_model(unexpected, idle_model, desk, contents_of):
    before = contents_of(idle_model)
    ran, (kept,) = unexpected("--json")
    assert ran.code == 2
    told = (
        f"ZeroDivisionError: by\\nzero; this is a bug: please report it with its traceback, {kept} (look it over first)"
    )
    assert ran.err == f"vaeprune: error: {told}\n"
    assert ran.json["error"]["type"] == "UnexpectedError"
    assert contents_of(idle_model) == before
    assert list(desk.iterdir()) == []


def test_a_kept_traceback_says_where_and_with_which_versions_and_no_value_of_any_variable(unexpected):
    _, (kept,) = unexpected()
    text = kept.read_text()
    assert "Traceback (most recent call last):" in text
    assert text.rstrip().endswith("ZeroDivisionError: by\nzero")
    assert text.startswith("vaeprune 0.1.0, Python 3.")
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "hunter2" not in text
    assert kept.stat().st_mode & 0o077 == 0


def test_the_traceback_is_shown_on_request(unexpected, monkeypatch):
    monkeypatch.setenv("VAEPRUNE_DEBUG", "1")
    ran, _ = unexpected()
    assert ran.err.startswith("Traceback (most recent call last):")
    assert ran.err.splitlines()[-1].startswith("vaeprune: error: ZeroDivisionError: by\\nzero; this is a bug: ")


def test_without_a_folder_for_temporary_files_none_is_kept(unexpected, desk, monkeypatch):
    """Python then offers the working folder, which may be a model's."""
    monkeypatch.setattr("tempfile.tempdir", str(desk))
    ran, kept = unexpected()
    assert ran.err.endswith("this is a bug: please report it with the traceback that VAEPRUNE_DEBUG=1 shows\n")
    assert (kept, list(desk.iterdir())) == ([], [])


@pytest.mark.parametrize("command", ["analyze", "shrink", "encode"])
def test_ctrl_c_exits_130_with_a_word_and_no_output(vaeprune, idle_model, rows, desk, monkeypatch, command):
    def press(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DenseVAE, "encode", press)
    words = {
        "analyze": ("analyze", idle_model, "--data", rows),
        "shrink": ("shrink", idle_model, "--data", rows, "--out", "new"),
        "encode": ("encode", idle_model, "--data", rows, "--out", "z.npy"),
    }[command]
    ran = vaeprune(*words, "--json")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "interrupted")
    assert list(desk.iterdir()) == []


def test_errors_of_a_process_are_those_of_the_function(process, vaeprune, rows):
    words = ("analyze", "nowhere", "--data", rows, "--json")
    assert process(*words) == vaeprune(*words)


def test_gaussian_model_takes_any_real_rows(vaeprune):
    torch.manual_seed(0)
    write_model_folder(ModelFolder(DenseVAE((5,), (8,), (8,), 2, Likelihood("gaussian", "mean"))), Path("real"))
    np.save("data.npy", np.random.default_rng(0).normal(0, 50, (300, 5)))
    assert vaeprune("analyze", "real", "--data", "data.npy").code == 0
