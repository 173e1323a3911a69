import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, assert_untouched, convolutional, dense, rows, snapshot
from vaeprune.architectures import DenseVAE
from vaeprune.data import MemoryRows
from vaeprune.errors import ExportError, ModelError, UsageError
from vaeprune.onnx_export import export_onnx, onnx_errors
from vaeprune.posterior import VAE, Posterior
from vaeprune.torch_export import export_pt2

Exported = tuple[DenseVAE, Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    vae = dense([1], input_shape=(1, 3, 4))
    folder = tmp_path_factory.mktemp("onnx")
    assert export_onnx(vae, folder) == (folder / "encoder.onnx", folder / "decoder.onnx")
    return vae, folder


def run(path: Path, value: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value.numpy()})


def shapes(path: Path) -> tuple[dict[str, list[int | str]], dict[str, list[int | str]]]:
    graph = onnx.load(path).graph
    return tuple(
        {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        for values in (graph.input, graph.output)
    )


# ---- what the files compute


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_files_compute_what_pytorch_computes_at_any_batch(exported: Exported, count: int) -> None:
    vae, folder = exported
    x = rows(count, (1, 3, 4), seed=count)
    z = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        posterior, decoded = vae.encode(x), vae.decode(z)
    mu, logvar = run(folder / "encoder.onnx", x)
    (x_hat,) = run(folder / "decoder.onnx", z)
    np.testing.assert_allclose(mu, posterior.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(logvar, posterior.logvar.numpy(), atol=1e-5)
    np.testing.assert_allclose(x_hat, decoded.numpy(), atol=1e-5)
    assert x_hat.shape == (count, 1, 3, 4)
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1  # the mean of the likelihood, not its logits


def test_inputs_and_outputs_have_names_and_a_dynamic_batch(exported: Exported) -> None:
    _, folder = exported
    inputs, outputs = shapes(folder / "encoder.onnx")
    assert list(inputs) == ["x"]
    assert list(outputs) == ["mu", "logvar"]
    assert (inputs["x"][1:], outputs["mu"][1:], outputs["logvar"][1:]) == ([1, 3, 4], [6], [6])
    inputs, other = shapes(folder / "decoder.onnx")
    assert list(inputs) == ["z"]
    assert list(other) == ["x_hat"]
    assert (inputs["z"][1:], other["x_hat"][1:]) == ([6], [1, 3, 4])
    assert all(isinstance(shape[0], str) for shape in (inputs["z"], outputs["mu"]))


def test_files_are_valid_and_have_no_random_operators(exported: Exported) -> None:
    _, folder = exported
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(folder / name)
        onnx.checker.check_model(model)
        assert not [node.op_type for node in model.graph.node if "Random" in node.op_type or "Bern" in node.op_type]
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.onnx", "encoder.onnx"]


def assert_exported_in_eval_mode(vae: VAE, folder: Path) -> None:
    vae.network.train()
    next(vae.network.children()).eval()
    next(vae.network.parameters()).grad = torch.ones_like(next(vae.network.parameters()))
    before = snapshot(vae.network)
    export_onnx(vae, folder)
    assert_untouched(vae.network, before)
    errors = onnx_errors(vae, folder, MemoryRows("rows", rows(30, vae.input_shape)))
    assert_untouched(vae.network, before)
    assert errors.encoder_max_abs_error < 1e-4 * errors.encoder_range
    assert errors.decoder_max_abs_error < 1e-4 * errors.decoder_range
    assert errors.decoder_range > 0.01


def test_files_of_a_model_in_train_mode_are_those_of_eval_mode_and_it_stays_as_it_was(tmp_path: Path) -> None:
    layers = [nn.BatchNorm1d(4), nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 5)]
    assert_exported_in_eval_mode(PlainVAE(nn.Sequential(*layers)), tmp_path)


@pytest.mark.slow
def test_files_of_a_convolutional_network_are_those_of_eval_mode(tmp_path: Path) -> None:
    assert_exported_in_eval_mode(convolutional([1]), tmp_path)


# ---- what is asked for


@pytest.mark.parametrize("opset", [18, 21])
def test_files_have_the_opset_asked_for(tmp_path: Path, opset: int) -> None:
    vae = dense([1])
    export_onnx(vae, tmp_path, opset=opset)
    for name in ("encoder.onnx", "decoder.onnx"):
        (found,) = onnx.load(tmp_path / name).opset_import
        assert (found.domain, found.version) == ("", opset)
    x = rows(5)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "encoder.onnx", x)[0], vae.encode(x).mean.numpy(), atol=1e-5)


def test_an_opset_that_cannot_be_written_is_refused_without_a_word_of_the_exporters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as error:
        export_onnx(dense([1]), tmp_path, opset=12)
    assert str(error.value) == ("encoder.onnx: torch's exporter gave opset 18, expected 12; take a later --opset")
    with pytest.raises(UsageError, match=r"^opset: got 10, expected 11 to \d+; the usual one is 20$"):
        export_onnx(dense([1]), tmp_path, opset=10)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_autoencoder_is_the_mean_path(tmp_path: Path) -> None:
    vae = dense([1])
    written = export_onnx(vae, tmp_path, autoencoder=True)
    assert [path.name for path in written] == ["encoder.onnx", "decoder.onnx", "autoencoder.onnx"]
    x = rows(9)
    with torch.no_grad():
        expected = vae.decode(vae.encode(x).mean)
    np.testing.assert_allclose(run(written[2], x)[0], expected.numpy(), atol=1e-5)
    errors = onnx_errors(vae, tmp_path, MemoryRows("rows", rows(30)))
    assert errors.autoencoder_max_abs_error < 1e-5
    assert 0 < errors.autoencoder_rms_error <= errors.autoencoder_max_abs_error


# ---- comparing


def test_errors_are_the_largest_differences_and_ranges_those_of_pytorch(exported: Exported) -> None:
    vae, folder = exported
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.mean_head.bias[2] += 0.25
        other.logvar_head.bias[3] -= 0.5
    x = rows(250, (1, 3, 4))
    errors = onnx_errors(other, folder, MemoryRows("rows", x))
    with torch.no_grad():
        p = other.encode(x)
        decoded = other.decode(p.mean)
    assert errors.encoder_max_abs_error == pytest.approx(0.5, abs=1e-5)
    assert errors.decoder_max_abs_error < 1e-5  # both decode the same means
    both = torch.cat([p.mean, p.logvar])
    assert errors.encoder_range == pytest.approx((both.max() - both.min()).item(), rel=1e-5)
    assert errors.decoder_range == pytest.approx((decoded.max() - decoded.min()).item(), rel=1e-4)


def test_a_model_that_gives_nan_differs_infinitely(exported: Exported) -> None:
    vae, folder = exported
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.output.bias[0] = float("nan")
    errors = onnx_errors(other, folder, MemoryRows("rows", rows(30, (1, 3, 4))))
    assert errors.decoder_max_abs_error == float("inf")
    assert errors.encoder_max_abs_error < 1e-5


def test_files_of_a_model_with_other_latents_are_refused(exported: Exported) -> None:
    _, folder = exported
    with pytest.raises(ExportError) as error:
        onnx_errors(dense([1], latents=4, input_shape=(1, 3, 4)), folder, MemoryRows("rows", rows(30, (1, 3, 4))))
    assert str(error.value) == "ONNX: output has shape (1, 6), PyTorch gives (1, 4)"


def test_files_that_take_other_rows_are_refused_by_name(exported: Exported) -> None:
    _, folder = exported
    with pytest.raises(ExportError, match=r"encoder\.onnx: onnxruntime fails at batch 1: "):
        onnx_errors(dense([1]), folder, MemoryRows("rows", rows(30)))


def test_a_missing_file_is_named(exported: Exported, tmp_path: Path) -> None:
    vae, folder = exported
    (tmp_path / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    with pytest.raises(ExportError) as error:
        onnx_errors(vae, tmp_path, MemoryRows("rows", rows(30, (1, 3, 4))))
    assert str(error.value) == (
        f"{tmp_path / 'decoder.onnx'}: no such file, expected an ONNX model; run `vaeprune export`"
    )


@pytest.mark.parametrize("damage", [b"", b"no model", None], ids=["empty", "text", "truncated"])
def test_a_damaged_file_is_named(exported: Exported, tmp_path: Path, damage: bytes | None) -> None:
    vae, folder = exported
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    path = tmp_path / "encoder.onnx"
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(ExportError) as error:
        onnx_errors(vae, tmp_path, MemoryRows("rows", rows(30, (1, 3, 4))))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


# ---- models that cannot be exported


def test_something_that_is_no_vae_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        export_onnx(nn.Linear(3, 3), tmp_path)
    assert str(error.value) == (
        "model: got Linear, expected an nn.Module with the VAE protocol (it lacks decode, decode_parameters, encode, "
        "input_shape, latent_shape, latent_size, likelihood, network)"
    )


class _Noisy(PlainVAE):
    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        p = super().encode(x)
        return Posterior(p.mean + torch.randn_like(p.mean), p.logvar)


def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        export_onnx(_Noisy(), tmp_path)
    assert str(error.value) == (
        "encoder.onnx: contains random operators RandomNormalLike; make encode and decode deterministic in eval mode"
    )
    assert list(tmp_path.iterdir()) == []


class _Measuring(PlainVAE):
    """Reads the batch as a number, which a tracer that runs it takes for a constant."""

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        p = super().encode(x)
        return Posterior(*torch.stack(p, -1).view(len(x), -1, 2).unbind(2))


def test_a_model_that_asks_for_the_length_of_its_batch_has_a_free_batch_all_the_same(tmp_path: Path) -> None:
    vae = _Measuring()
    before, held = snapshot(vae), MemoryRows("rows", torch.rand(150, *vae.input_shape))
    export_onnx(vae, tmp_path)
    errors = onnx_errors(vae, tmp_path, held)
    assert max(errors.encoder_max_abs_error, errors.decoder_max_abs_error) <= 1e-5
    assert onnx.load(tmp_path / "encoder.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert max(export_pt2(vae, tmp_path, held).values()) <= 1e-5
    assert_untouched(vae, before)


class _Counting(PlainVAE):
    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        p = super().encode(x)
        return Posterior(p.mean * float(np.sqrt(x.shape[0])), p.logvar)


def test_a_model_that_computes_with_its_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^encoder\.onnx: the batch is fixed to 2: .+") as error:
        export_onnx(_Counting(), tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


class _Branching(PlainVAE):
    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z) if z.sum().item() > 0 else -self.decoder(z)


def test_a_model_torch_cannot_export_is_refused_with_what_torch_says(tmp_path: Path) -> None:
    vae = _Branching()
    before = snapshot(vae)
    with pytest.raises(ExportError, match=r"^decoder\.onnx: torch's exporter failed: .+") as error:
        export_onnx(vae, tmp_path)
    assert "\n" not in str(error.value)
    assert_untouched(vae, before)
