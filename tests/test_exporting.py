"""Folders of deployable files, each judged beside PyTorch before it appears."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from planted import convolutional, dense, rows
from trained import sets, trained_dense
from vaeprune import exporting
from vaeprune.architectures import DenseVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ExportError, OnnxMismatch, StorageError, UsageError
from vaeprune.evidence import Sampling
from vaeprune.exporting import LIMITS, Limits, Wanted, export
from vaeprune.onnx_elbo import onnx_elbo_difference
from vaeprune.onnx_export import OnnxErrors, onnx_errors
from vaeprune.onnx_figures import onnx_figures
from vaeprune.onnx_precision import PRECISIONS, Precision

Measured = Callable[..., None]
EXACT = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def vae() -> DenseVAE:
    return dense([1])


@pytest.fixture
def data() -> DataSets:
    return as_data(rows())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Files that are written at once and differ from PyTorch as a test says."""

    def write(_vae: DenseVAE, folder: Path, **_: object) -> tuple[Path, ...]:
        files = tuple(folder / name for name in ("encoder.onnx", "decoder.onnx"))
        for file in files:
            tensor = onnx.helper.make_tensor_value_info("x", 1, [1])
            graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [tensor], [tensor])
            onnx.save(onnx.helper.make_model(graph), file)
        return files

    def set_errors(*errors: float, elbo: float = 0.0) -> None:
        monkeypatch.setattr(exporting, "export_onnx", write)
        monkeypatch.setattr(exporting, "onnx_errors", lambda *_: OnnxErrors(*errors))
        monkeypatch.setattr(exporting, "onnx_elbo_difference", lambda *_: Sampling(0.0, (-elbo, elbo)))

    return set_errors


def run(path: Path, value: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value.numpy()})


# ---- the folder


def test_a_folder_with_both_files_appears_once_they_were_run(vae: DenseVAE, data: DataSets, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    exported = export(vae, data, out)
    assert exported.files == (out / "decoder.onnx", out / "encoder.onnx")
    assert sorted(out.iterdir()) == list(exported.files)
    assert list(out.parent.iterdir()) == [out]
    assert exported.errors == onnx_errors(vae, out, data.verify)
    assert exported.errors.encoder_max_abs_error <= 1e-4 * exported.errors.encoder_range
    assert exported.sampling == onnx_elbo_difference(vae, out, data.verify, data.seed)
    assert [gate.name for gate in exported.gates] == [
        "encoder.onnx, largest",
        "decoder.onnx, largest",
        "ELBO loss, upper 95% bound",
    ]
    assert exported.file_bytes == exported.fp32_bytes == {f.stem: f.stat().st_size for f in exported.files}
    assert json.loads(json.dumps(exported.to_json(), allow_nan=False))["gates"][0]["passed"] is True


@pytest.mark.parametrize(
    ("errors", "elbo", "message"),
    [
        ((0.5, 0.0, 2.0, 1.0), 0.0, "encoder.onnx, largest 0.25 > 0.1"),
        ((0.0, 0.11, 2.0, 1.0), 0.0, "decoder.onnx, largest 0.11 > 0.1"),
        ((0.0, float("inf"), 2.0, 1.0), 0.0, "decoder.onnx, largest inf > 0.1"),
        ((float("nan"), 0.0, 2.0, 1.0), 0.0, "encoder.onnx, largest nan > 0.1"),
        ((1e-3, 0.0, 0.0, 1.0), 0.0, "encoder.onnx, largest 1e+09 > 0.1"),
        (EXACT, 0.3, "ELBO loss, upper 95% bound 0.3 > 0.2"),
        (EXACT, float("nan"), "ELBO loss, upper 95% bound nan > 0.2"),
    ],
)
def test_files_that_differ_leave_nothing(
    vae: DenseVAE,
    data: DataSets,
    tmp_path: Path,
    measured: Measured,
    errors: tuple[float, ...],
    elbo: float,
    message: str,
) -> None:
    measured(*errors, elbo=elbo)
    with pytest.raises(OnnxMismatch) as error:
        export(vae, data, tmp_path / "out", Wanted(limits=Limits(0.1, 0.2)))
    assert str(error.value) == (
        f"export failed: {message}; nothing was written; take another --precision, or give a wider --onnx-tolerance "
        "or --max-elbo-loss"
    )
    assert len(error.value.gates) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_a_share_of_the_range(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    measured(0.2, 0.1, 2.0, 1.0)
    export(vae, data, tmp_path / "out", Wanted(limits=Limits(0.1, 0.1)))
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
    measured(*EXACT)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(exporting, "onnx_errors", fail)
    with pytest.raises(type(failure)):
        export(vae, data, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_any_work(
    vae: DenseVAE, data: DataSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export_onnx", None)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(StorageError) as error:
        export(vae, data, tmp_path)
    assert str(error.value) == f"{tmp_path}: already exists; choose another name or pass --force to replace it"
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_force_replaces_an_earlier_export_and_a_failed_one_keeps_it(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    out = tmp_path / "out"
    measured(*EXACT)
    export(vae, data, out)
    for name in ("encoder.onnx", "encoder.onnx.data", "autoencoder.onnx", "decoder.pt2"):
        (out / name).write_bytes(b"old")
    measured(9.0, 0.0, 1.0, 1.0)
    with pytest.raises(OnnxMismatch):
        export(vae, data, out, force=True)
    assert (out / "encoder.onnx").read_bytes() == b"old"
    measured(*EXACT)
    export(vae, data, out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    assert (out / "encoder.onnx").read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_force_does_not_replace_somebody_elses_folder(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured
) -> None:
    measured(*EXACT)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="is not empty and not a model folder"):
        export(vae, data, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_files_are_checked_on_the_verify_rows(
    vae: DenseVAE, data: DataSets, tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(*EXACT)
    seen: list[torch.Tensor] = []

    def look(_vae: DenseVAE, _folder: Path, given: object) -> OnnxErrors:
        seen.extend(x for (x,) in given.batches(1000))
        return OnnxErrors(*EXACT)

    monkeypatch.setattr(exporting, "onnx_errors", look)
    export(vae, data, tmp_path / "out")
    assert torch.equal(torch.cat(seen), torch.cat([x for (x,) in data.verify.batches(1000)]))


def test_senseless_wishes_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        Wanted("int4")
    assert str(error.value) == "precision: got 'int4', expected one of fp32, fp16, int8-dynamic, int8-static"
    with pytest.raises(UsageError, match="tolerance elbo: got -1, expected a finite number of at least 0"):
        Limits(0.1, -1)
    with pytest.raises(UsageError, match="tolerance outputs: got nan"):
        Limits(float("nan"), 1)


# ---- precisions


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, exporting.Exported]:
    folder = tmp_path_factory.mktemp("precisions")
    return {p: export(trained_dense(), sets(), folder / p, Wanted(p, autoencoder=True)) for p in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_computes_what_pytorch_computes_within_its_limits(
    exported: dict[Precision, exporting.Exported], precision: Precision
) -> None:
    found, vae = exported[precision], trained_dense()
    (x,) = next(iter(sets().verify.batches(200)))
    with torch.no_grad():
        posterior = vae.encode(x)
        decoded = vae.decode(posterior.mean)
    mu, logvar = run(found.out / "encoder.onnx", x)
    (x_hat,) = run(found.out / "decoder.onnx", posterior.mean)
    (rebuilt,) = run(found.out / "autoencoder.onnx", x)
    assert mu.dtype == x_hat.dtype == np.float32  # whatever is inside, callers hand over and get float32
    limit = LIMITS[precision].outputs
    span = found.errors.encoder_range
    for got, expected, of in (
        (mu, posterior.mean, span),
        (logvar, posterior.logvar, span),
        (x_hat, decoded, 1.0),
        (rebuilt, decoded, 1.0),
    ):
        assert np.sqrt(np.mean((got - expected.numpy()) ** 2)) < 1.5 * limit * of
    assert all(gate.passed for gate in found.gates)
    assert len(found.gates) == 4


def test_a_lower_precision_is_smaller_and_really_of_that_precision(
    exported: dict[Precision, exporting.Exported],
) -> None:
    def kinds(precision: Precision) -> set[int]:
        graph = onnx.load(exported[precision].out / "decoder.onnx").graph
        return {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}

    assert kinds("fp32") == {onnx.TensorProto.FLOAT}
    assert kinds("fp16") == {onnx.TensorProto.FLOAT16}
    assert kinds("int8-dynamic") == kinds("int8-static") == {onnx.TensorProto.INT8}
    sizes = [exported[p].file_bytes["decoder"] / exported[p].fp32_bytes["decoder"] for p in PRECISIONS]
    assert sizes[0] == 1
    assert sizes[1] < 0.6
    assert sizes[2] < 0.5
    assert sizes[3] < 0.5
    assert exported["fp32"].errors.decoder_rms_error < exported["fp16"].errors.decoder_rms_error
    assert exported["fp16"].errors.decoder_rms_error < exported["int8-static"].errors.decoder_rms_error


def test_figures_count_the_same_weights_and_flops_in_every_precision(
    exported: dict[Precision, exporting.Exported],
) -> None:
    for part in ("encoder", "decoder"):
        found = [onnx_figures(exported[precision].out / f"{part}.onnx") for precision in PRECISIONS]
        assert len({figures.weights for figures in found}) == 1
        assert len({figures.flops_per_row for figures in found}) == 1
        assert found[0].weights == sum(
            value.numel() for name, value in trained_dense().state_dict().items() if _part(name) == part
        )


def _part(name: str) -> str:
    return "decoder" if name.startswith(("decoder", "output")) else "encoder"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_of_every_precision_are_standard_onnx_with_our_metadata_alone(
    exported: dict[Precision, exporting.Exported], precision: Precision
) -> None:
    for part in ("encoder", "decoder", "autoencoder"):
        path = exported[precision].out / f"{part}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} == {""}
        assert not [node.op_type for node in model.graph.node if "Random" in node.op_type]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.get_modelmeta().custom_metadata_map
        assert found["vaeprune.part"] == part
        assert found["vaeprune.kept_latents"] == "[0, 1, 2, 3]"
        assert all(key.startswith("vaeprune.") for key in found)
        assert {shape[0] for shape in (i.shape for i in session.get_inputs())} == {"batch"}
        text = path.read_bytes()
        assert b"site-packages" not in text
        assert str(Path(__file__).parents[1]).encode() not in text


def test_sizes_and_latency_stand_beside_float32(exported: dict[Precision, exporting.Exported]) -> None:
    static = exported["int8-static"]
    assert static.calibration_rows == exporting.CALIBRATION_ROWS
    assert exported["int8-dynamic"].calibration_rows is None
    assert exported["fp32"].latency == ()
    assert [(one.part, one.batch) for one in static.latency] == [
        (part, batch) for batch in (1, 32, 256) for part in ("encoder", "decoder")
    ]
    assert static.fp32_bytes == exported["fp32"].file_bytes


def test_the_elbo_of_the_files_is_measured_with_the_same_noise(
    exported: dict[Precision, exporting.Exported],
) -> None:
    """Against an oracle in float64 that knows nothing of the library's comparison: means over many rows agree."""
    vae, out = trained_dense(), exported["int8-static"].out
    (x,) = next(iter(sets().verify.batches(10_000)))
    noise = torch.randn(8, *x.shape[:1], 4, generator=torch.Generator().manual_seed(5))

    def loss(encode: Callable[[Tensor], tuple[Tensor, Tensor]], decode: Callable[[Tensor], Tensor]) -> Tensor:
        mu, logvar = (part.double() for part in encode(x))
        kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
        total = torch.zeros(len(x), dtype=torch.float64)
        for draw in noise:
            p = decode((mu + (0.5 * logvar).exp() * draw).float()).double().clamp(2**-24, 1 - 2**-24)
            total -= (x * p.log() + (1 - x) * torch.log1p(-p)).flatten(1).sum(1) / len(noise)
        return total + kl

    with torch.no_grad():
        before = loss(vae.encode, vae.decode)
    after = loss(
        lambda x: tuple(map(torch.from_numpy, run(out / "encoder.onnx", x))),
        lambda z: torch.from_numpy(run(out / "decoder.onnx", z)[0]),
    )
    low, high = exported["int8-static"].sampling.ci95
    assert low < high
    width = high - low
    assert low - width < (after - before).mean().item() < high + width
    assert exported["int8-static"].sampling.elbo_difference != 0
    assert abs(exported["fp32"].sampling.elbo_difference) < 1e-3


@pytest.mark.slow
def test_int8_static_reaches_convolutions_and_transposed_ones(tmp_path: Path) -> None:
    vae = convolutional([1], channels=6)
    data = as_data(rows(400, vae.input_shape))
    exported = export(vae, data, tmp_path / "out", Wanted("int8-static", limits=Limits(0.05, 100)))
    for part, operator in (("encoder", "Conv"), ("decoder", "ConvTranspose")):
        graph = onnx.load(tmp_path / "out" / f"{part}.onnx").graph
        held = {t.name: t.data_type for t in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        readers = [node for node in graph.node if node.op_type == operator]
        assert len(readers) > 5
        assert {held[made_by[node.input[1]].input[0]] for node in readers} == {onnx.TensorProto.INT8}
    (x,) = next(iter(data.verify.batches(50)))
    mu, _ = run(tmp_path / "out" / "encoder.onnx", x)
    with torch.no_grad():
        difference = np.abs(mu - vae.encode(x).mean.numpy()).max()
    assert 0 < difference < 0.1 * exported.errors.encoder_range


def test_int8_dynamic_is_refused_where_it_reaches_no_layer(tmp_path: Path) -> None:
    vae = convolutional([1])
    with pytest.raises(ExportError) as error:
        export(vae, as_data(rows(300, vae.input_shape)), tmp_path / "out", Wanted("int8-dynamic"))
    assert str(error.value) == (
        "model: int8-dynamic leaves every weight in float32, since it reaches none of its layers; "
        "take --precision int8-static"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_float64_has_no_lower_precision(vae: DenseVAE, data: DataSets, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        export(vae.double(), data, tmp_path / "out", Wanted("fp16"))
    assert (
        str(error.value) == "model: computes in torch.float64, expected torch.float32; convert it first: model.float()"
    )
    assert list(tmp_path.iterdir()) == []


def test_calibration_rows_are_a_sample_of_the_calibrate_rows_and_the_prior(data: DataSets) -> None:
    found = exporting._calibration(dense([1]), data)
    (every,) = next(iter(data.calibrate.batches(100_000)))
    known = {row.tobytes() for row in every.numpy()}
    assert all(row.tobytes() in known for row in found["x"])
    assert len(found["x"]) == min(exporting.CALIBRATION_ROWS, len(every))
    assert len(found["z"]) == 2 * len(found["x"])
    prior = found["z"][len(found["x"]) :]
    assert abs(prior.mean()) < 0.1
    assert abs(prior.std() - 1) < 0.1


# ---- same bytes, other files


def test_the_same_model_gives_the_same_onnx_bytes(vae: DenseVAE, data: DataSets, tmp_path: Path) -> None:
    def digests(name: str) -> list[str]:
        done = export(vae, data, tmp_path / name / "out", Wanted("int8-static"))
        return [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in done.files]

    assert digests("a") == digests("b")


def test_pt2_files_compute_what_the_model_computes_and_hold_their_own_weights_alone(
    vae: DenseVAE, data: DataSets, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    exported = export(vae, data, tmp_path / "out", Wanted(pt2=True, autoencoder=True))
    names = [gate.name for gate in exported.gates if ".pt2" in gate.name]
    assert names == ["encoder.pt2, largest", "decoder.pt2, largest", "autoencoder.pt2, largest"]
    encoder, decoder, whole = (
        torch.export.load(tmp_path / "out" / f"{part}.pt2") for part in ("encoder", "decoder", "autoencoder")
    )
    x = rows(5)
    with torch.no_grad():
        posterior = vae.encode(x)
        torch.testing.assert_close(encoder.module()(x), tuple(posterior), rtol=0, atol=1e-6)
        decoded = vae.decode(posterior.mean)
        torch.testing.assert_close(decoder.module()(posterior.mean), decoded, rtol=0, atol=1e-6)
        torch.testing.assert_close(whole.module()(x[:1]), decoded[:1], rtol=0, atol=1e-6)
    assert not [name for name in encoder.state_dict if "decoder" in name]
    assert not [name for name in decoder.state_dict if "encoder" in name]
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


def test_weights_beside_the_graph_stay_in_the_folder(tmp_path: Path) -> None:
    vae = trained_dense()
    exported = export(vae, sets(), tmp_path / "out", Wanted("int8-static", external=True))
    names = ["decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data"]
    assert [file.name for file in exported.files] == names
    (tmp_path / "out").rename(tmp_path / "moved")
    (x,) = next(iter(sets().verify.batches(50)))
    mu, _ = run(tmp_path / "moved" / "encoder.onnx", x)
    with torch.no_grad():
        assert np.abs(mu - vae.encode(x).mean.numpy()).max() < 0.1 * exported.errors.encoder_range
    graph = onnx.load(tmp_path / "moved" / "encoder.onnx", load_external_data=False).graph
    places = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"encoder.onnx.data"}
    sizes = [(tmp_path / "moved" / name).stat().st_size for name in ("encoder.onnx", "encoder.onnx.data")]
    assert sizes[1] > sizes[0]
    assert exported.file_bytes["encoder"] == sum(sizes)
