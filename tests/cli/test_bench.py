"""`vaeprune bench`: what two exported models cost, in figures and in plain words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from vaeprune.cli.bench import findings

import planted
from vaeprune import cut, export_onnx
from vaeprune.architectures.dense import DenseVAE
from vaeprune.latency import Change, Comparison, Latency, Timing


@pytest.fixture(scope="module")
def before() -> DenseVAE:
    """Six latents, of which 1 and 4 are idle."""
    return planted.dense((1, 4), input_shape=(1, 28, 28), encoder=(32, 16), decoder=(16, 32))


@pytest.fixture(scope="module")
def after(before) -> DenseVAE:
    """The same without its idle latents."""
    return cut(before, planted.planned(before, (1, 4)))


@pytest.fixture(scope="module")
def original(tmp_path_factory, before) -> Path:
    """The ONNX pair of six latents."""
    folder = tmp_path_factory.mktemp("original")
    export_onnx(before, folder)
    return folder


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory, after) -> Path:
    """The ONNX pair of four latents."""
    folder = tmp_path_factory.mktemp("shrunk")
    export_onnx(after, folder)
    return folder


def test_text_has_every_figure_and_a_sentence(vaeprune, original, shrunk, before, after):
    ran = vaeprune("bench", original, shrunk, "--repeats", 3)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["before", "after", "ratio"]
    names = ["weights", "file size, bytes", "FLOPs per row", "peak memory, bytes"]
    assert [line[:20].strip() for line in lines[1:5]] == names
    weights = [sum(p.numel() for p in vae.parameters()) for vae in (before, after)]
    assert lines[1].split()[1:] == [f"{weights[0]:,}", f"{weights[1]:,}", f"{weights[1] / weights[0]:.3f}"]
    assert lines[5] == ""
    assert lines[6] == "latency in ms per batch, 1 thread: median (interquartile range) of 3 repeats"
    timed = [f"{part}, batch {batch}" for batch in (1, 32, 256) for part in ("encoder", "decoder")]
    assert [line[:20].strip() for line in lines[7:13]] == timed
    assert lines[13] == ""
    starts = ("slower than before at batch ", "faster than before at batch ", "no difference that could be measured")
    assert lines[14:]
    assert all(line.startswith(starts) for line in lines[14:])


def test_json_is_the_comparison(vaeprune, original, shrunk):
    ran = vaeprune("bench", original, shrunk, "--repeats", 3, "--json")
    assert (ran.code, ran.err) == (0, "")
    changes = ["weights", "file_bytes", "flops_per_row", "peak_memory_bytes"]
    assert list(ran.json) == ["before", "after", "threads", "repeats", *changes, "latency"]
    assert (ran.json["before"], ran.json["after"]) == (str(original), str(shrunk))
    assert (ran.json["threads"], ran.json["repeats"]) == (1, 3)
    layers = 784 * 32 + 32 * 16, 16 * 32 + 32 * 784
    flops = [2 * (layers[0] + 2 * 16 * latents + latents * 16 + layers[1]) for latents in (6, 4)]
    assert ran.json["flops_per_row"] == {"before": flops[0], "after": flops[1], "ratio": flops[1] / flops[0]}
    assert [(one["batch"], one["part"]) for one in ran.json["latency"]] == [
        (batch, part) for batch in (1, 32, 256) for part in ("encoder", "decoder")
    ]
    for one in ran.json["latency"]:
        assert one.keys() == {"part", "batch", "before", "after", "ratio", "verdict"}
        assert one["verdict"] in ("slower", "faster", "no difference")


SLOW, FAST = Timing(0.015, 0.0148, 0.0152), Timing(0.01, 0.0099, 0.0101)


@pytest.mark.parametrize(
    ("timings", "told"),
    [
        (
            [("encoder", 1, FAST, SLOW), ("decoder", 1, FAST, SLOW), ("encoder", 32, SLOW, FAST)],
            [
                "slower than before at batch 1: "
                + ", ".join(f"{part} 0.01 → 0.015 ms (1.500 of the time)" for part in ("encoder", "decoder")),
                "faster than before at batch 32: encoder 0.015 → 0.01 ms (0.667 of the time)",
            ],
        ),
        (
            [("encoder", 1, SLOW, FAST), ("decoder", 1, FAST, FAST), ("decoder", 256, FAST, SLOW)],
            [
                "slower than before at batch 256: decoder 0.01 → 0.015 ms (1.500 of the time)",
                "faster than before at batch 1: encoder 0.015 → 0.01 ms (0.667 of the time)",
                "no difference that could be measured: decoder at batch 1",
            ],
        ),
        (
            [("encoder", 1, FAST, FAST), ("decoder", 1, SLOW, SLOW)],
            ["no difference that could be measured in latency"],
        ),
    ],
    ids=["slower-first", "all-three", "none"],
)
def test_plain_words(timings, told):
    assert findings([Latency(*one) for one in timings]) == told


def test_a_slower_pair_is_said_to_be_slower_and_is_no_failure(vaeprune, monkeypatch):
    def found(before, after, *, threads, repeats, progress):
        same, fewer, unknown = Change(10, 10), Change(3000, 2000), Change(None, None)
        latency = (Latency("encoder", 1, FAST, SLOW), Latency("decoder", 1, FAST, FAST))
        return Comparison(str(before), str(after), threads, repeats, same, fewer, unknown, fewer, latency)

    monkeypatch.setattr("vaeprune.latency.compare", found)
    ran = vaeprune("bench", "a", "b")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "                                  before               after   ratio",
        "weights                               10                  10   1.000",
        "file size, bytes                   3,000               2,000   0.667",
        "FLOPs per row                  not known           not known",
        "peak memory, bytes                 3,000               2,000   0.667",
        "",
        "latency in ms per batch, 1 thread: median (interquartile range) of 30 repeats",
        "encoder, batch 1           0.01 (0.0002)      0.015 (0.0004)   1.500",
        "decoder, batch 1           0.01 (0.0002)       0.01 (0.0002)   1.000",
        "",
        "slower than before at batch 1: encoder 0.01 → 0.015 ms (1.500 of the time)",
        "no difference that could be measured: decoder at batch 1",
    ]


# --- what is refused


def test_missing_folder_and_missing_file(refused, original, tmp_path):
    error = refused("bench", original, "nowhere")
    assert error == {
        "type": "StorageError",
        "message": "nowhere: no such folder, expected a folder with encoder.onnx and decoder.onnx",
        "hint": "write one with `vaeprune export`",
    }
    half = Path(shutil.copytree(original, tmp_path / "half"))
    (half / "decoder.onnx").unlink()
    told = f"{half / 'decoder.onnx'}: no such file, expected an ONNX model; write one with `vaeprune export`"
    assert refused("bench", half, original, told=[told])["type"] == "StorageError"


def test_model_folder_without_onnx_files(refused, original, idle_model):
    told = "encoder.onnx: no such file, expected an ONNX model"
    refused("bench", original, idle_model, told=[told])


def test_file_that_is_no_onnx_model(refused, original, tmp_path):
    broken = Path(shutil.copytree(original, tmp_path / "broken"))
    (broken / "encoder.onnx").write_text("no model")
    error = refused("bench", original, broken, told=[f"{broken / 'encoder.onnx'}: is no ONNX model: "])
    assert error["type"] == "StorageError"


def test_pairs_that_take_different_rows(refused, original, tmp_path):
    (tmp_path / "other").mkdir()
    export_onnx(DenseVAE((1, 3, 4), (5,), (5,), 2), tmp_path / "other")
    told = f"takes x of shape (1, 3, 4), {original / 'encoder.onnx'} takes (1, 28, 28), expected the same"
    assert refused("bench", original, tmp_path / "other", told=[told])["type"] == "ModelError"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--repeats 2", "repeats: got 2, expected at least 3"),
        ("--repeats many", "--repeats"),
        ("--threads 0", "threads: got 0, expected 1 to "),
        ("--threads 100000", "threads: got 100000, expected 1 to "),
    ],
)
def test_senseless_option(refused, original, options, told):
    assert refused("bench", original, original, *options.split(), told=[told])["type"] == "UsageError"


def test_one_folder_is_not_enough(refused, original):
    refused("bench", original, told=["B"])


def test_escape_codes_in_a_name_are_shown(refused, original):
    refused("bench", original, "e\x1b[31mvil\r", told=[r"e\x1b[31mvil\r: no such folder"])
