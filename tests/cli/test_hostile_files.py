"""The threats of docs/security.md that come as files, each against the command line."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaeprune.data import tiles

WEIGHTS = "model.safetensors"
FOREIGN = "vaeprune.architectures.dense:DenseVAE"
SIZES = ("input_shape=1,28,28", "encoder_widths=32,16", "decoder_widths=16,32", "latent_size=6")


class Boobytrap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def bare(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Boobytrap(canary)}, protocol=2)


def in_zip(canary: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", bare(canary))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def in_tar(canary: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            entry = tarfile.TarInfo(name)
            entry.size = len(bare(canary))
            tar.addfile(entry, io.BytesIO(bare(canary)))
    return out.getvalue()


def in_torch_save(canary: Path) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(2), "x": Boobytrap(canary)}}, out)
    return out.getvalue()


def in_object_array(canary: Path) -> bytes:
    out, objects = io.BytesIO(), np.empty((300, 2), dtype=object)
    objects[:] = Boobytrap(canary)
    np.save(out, objects)
    return out.getvalue()


def in_npz(canary: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", in_object_array(canary))
        archive.writestr("labels.npy", in_object_array(canary))
    return out.getvalue()


PICKLES = [bare, in_zip, in_tar, in_torch_save, in_object_array, in_npz]


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("make", PICKLES, ids=lambda f: f.__name__)
def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(rows, refused, canary, make, suffix):
    Path(f"w{suffix}").write_bytes(make(canary))
    arguments = [word for size in SIZES for word in ("--model-arg", size)]
    refused("analyze", FOREIGN, "--weights", f"w{suffix}", *arguments, "--data", rows, told=[f"w{suffix}"])
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("make", PICKLES, ids=lambda f: f.__name__)
def test_a_pickle_in_place_of_rows_or_conditions_is_not_executed(idle_model, rows, refused, canary, make, suffix):
    Path(f"rows{suffix}").write_bytes(make(canary))
    refused("analyze", idle_model, "--data", f"rows{suffix}", told=[f"rows{suffix}"])
    if suffix == ".npy":
        refused("analyze", idle_model, "--data", rows, "--condition", "rows.npy", told=["rows.npy"])
    else:
        refused("analyze", idle_model, "--data", "rows.npz", "--condition", "labels", told=["rows.npz"])
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("make", [bare, in_torch_save], ids=lambda f: f.__name__)
def test_a_pickle_in_place_of_any_file_of_a_model_folder_is_not_executed(
    shrunk, idle_model, rows, copied, canary, vaeprune, make
):
    model = copied(shrunk)
    for name in sorted(p.name for p in model.iterdir()):
        kept = (model / name).read_bytes()
        (model / name).write_bytes(make(canary))
        vaeprune("verify", idle_model, model, "--data", rows)
        assert not canary.exists(), name
        (model / name).write_bytes(kept)


# --- bombs


def bomb_npz(path: Path, shape: tuple[int, ...]) -> None:
    """Zeros of that shape, deflated a thousandfold."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w") as member,
    ):
        member.write(head.getvalue())
        left = 4 * int(np.prod(shape))
        block = bytes(1 << 24)
        while left:
            left -= member.write(block[:left])


@pytest.mark.slow
def test_an_archive_that_expands_a_thousandfold_is_refused(idle_model, refused):
    bomb_npz(Path("bomb.npz"), (1_400_000, 14, 14))
    assert Path("bomb.npz").stat().st_size < 2 << 20
    error = refused("analyze", idle_model, "--data", "bomb.npz", told=["expand to 1,097,600,"])
    assert error["hint"] == "if they are meant, save them uncompressed, as .npy"


def test_rows_larger_than_any_network_takes_are_refused_by_their_header(vaeprune, idle_model):
    with Path("huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (300, 1 << 29)})
        file.truncate(file.tell() + 300 * (4 << 29))  # a hole: it takes no room on the disk
    ran = vaeprune("analyze", idle_model, "--data", "huge.npy")
    told = "huge.npy: has rows of 2,147,483,648 bytes, expected at most 1,073,741,824"
    assert (ran.code, ran.err) == (2, f"vaeprune: error: {told}\n")


@pytest.mark.parametrize("shape", [(300, 1 << 60), (1 << 62, 4), (1 << 40, 28, 28), (10**30, 28, 28)])
def test_a_header_that_promises_terabytes_is_refused(idle_model, refused, shape):
    with Path("bomb.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(1000))
    refused("analyze", idle_model, "--data", "bomb.npy", told=["bomb.npy: h"])


def bomb_png(side: int) -> bytes:
    """A grey picture of side × side pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    content = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()
    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_000, 12_000])
def test_a_picture_that_expands_without_measure_is_refused_before_it_is_decoded(idle_model, refused, side):
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(bomb_png(side))
    told = f"pictures/a.png: is {side}x{side} pixels, expected at most 16,777,216 in all; resize the pictures first"
    refused("analyze", idle_model, "--data", "pictures", told=[told])


@pytest.mark.slow
def test_many_pictures_that_expand_a_thousandfold_are_refused_before_there_is_room_for_all(idle_model, refused):
    Path("pictures").mkdir()
    content = bomb_png(4_000)
    for i in range(30):
        Path(f"pictures/{i}.png").write_bytes(content)
    refused("analyze", idle_model, "--data", "pictures", told=["pictures: its ", "expand to 1,440,000,000"])


def test_a_compressed_checkpoint_is_refused(rows, refused):
    """torch never compresses: a small file of many gigabytes of zeros would be expanded before any shape is seen."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(1 << 20)}, out)
    with zipfile.ZipFile(out) as plain, zipfile.ZipFile("w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    arguments = [word for size in SIZES for word in ("--model-arg", size)]
    told = ["w.pt: its ", " expand to ", "expected a file as torch.save writes it"]
    refused("analyze", FOREIGN, "--weights", "w.pt", *arguments, "--data", rows, told=told)


# --- links and places


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "history.json", "training_state.safetensors"])
def test_links_to_devices_and_pipes_in_a_model_folder_are_not_read(training, rows, copied, refused, name):
    for i, place in enumerate(("/dev/zero", "pipe")):
        model = copied(training, f"model{i}")
        (model / name).unlink()
        if place == "pipe":
            os.mkfifo(model / name)
        else:
            (model / name).symlink_to(place)
        if name == "training_state.safetensors":
            refused("train", "--resume", "--out", model, "--epochs", 9, told=[name])
        else:
            refused("analyze", model, "--data", rows, told=[name])


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_what_a_link_in_a_model_folder_leads_to_is_never_written(vaeprune, training, copied, tmp_path, kind):
    """A trap: resuming in a folder whose files are links must not write through them."""
    model = copied(training)
    for path in list(model.iterdir()):
        victim = tmp_path / f"victim-{path.name}"
        victim.write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(victim) if kind == "symbolic" else path.hardlink_to(victim)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("victim-*")}
    ran = vaeprune("train", "--resume", "--out", model, "--epochs", 3, "--quiet")
    assert ran.code == 0, ran.err
    assert {p.name: p.read_bytes() for p in tmp_path.glob("victim-*")} == before
    assert not any(p.is_symlink() for p in model.iterdir())


def test_replacing_a_folder_of_links_removes_the_links_alone(vaeprune, busy_model, rows, copied, tmp_path):
    model = copied(busy_model)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"cat")
    (model / "more").symlink_to(photos)
    ran = vaeprune("grow", busy_model, "--latent", 5, "--data", rows, "--out", model, "--force", "--quiet")
    assert ran.code == 0, ran.err
    assert (photos / "cat.png").read_bytes() == b"cat"


def test_names_of_places_in_a_plan_lead_nowhere(vaeprune, idle_model, shrunk, rows, copied, refused, tmp_path):
    """A plan names tensors and modules of the model, no files; what is no name of those is refused."""
    for i, place in enumerate(("/etc/passwd", "../../outside", "..", "forward.__globals__", "__class__")):
        plan = copied(shrunk, f"plan{i}") / "plan.json"
        entry = json.loads(plan.read_text())
        entry["slices"][0]["key"] = place
        plan.write_text(json.dumps(entry))
        refused("shrink", idle_model, "--data", rows, "--plan", plan, "--out", "new", told=["plan: cuts"])
        entry = json.loads((shrunk / "plan.json").read_text())
        entry["attributes"][place] = 3
        plan.write_text(json.dumps(entry))
        refused("shrink", idle_model, "--data", rows, "--plan", plan, "--out", "new", told=["is not an integer of"])
    assert not (tmp_path / "outside").exists()


def test_a_plan_of_nonsense_for_the_right_weights_is_refused_or_fails_its_gates(
    vaeprune, idle_model, shrunk, rows, copied, desk
):
    """Nothing but the gates can know that other rows were meant; nothing is written."""
    plan = copied(shrunk) / "plan.json"
    entry = json.loads(plan.read_text())
    for part in entry["slices"]:
        if part["key"].startswith(("mean_head", "logvar_head")):
            part["kept"] = [0, 1, 2, 3]
    plan.write_text(json.dumps(entry))
    ran = vaeprune("shrink", idle_model, "--data", rows, "--plan", plan, "--out", "new", "--json")
    assert ran.code == 1, ran
    assert not ran.json["evidence"]["passed"]
    assert list(desk.iterdir()) == []


@pytest.mark.parametrize("command", ["shrink", "verify"])
def test_a_plan_that_leaves_layers_which_do_not_fit_is_refused(
    vaeprune, refused, idle_model, shrunk, rows, copied, command
):
    """One slice after the other is lost; what is left may run, and is then the gates' to judge."""
    folder = copied(shrunk)
    plan = folder / "plan.json"
    entry = json.loads(plan.read_text())
    told = []
    for i in range(len(entry["slices"])):
        plan.write_text(json.dumps(entry | {"slices": [part for j, part in enumerate(entry["slices"]) if j != i]}))
        words = ("shrink", idle_model, "--plan", plan, "--out", "new", "--data", rows)
        if command == "verify":
            words = ("verify", idle_model, folder, "--data", rows)
        ran = vaeprune(*words)
        assert ran.code in (1, 2), ran
        assert len(ran.err.splitlines()) == 1 or ran.code == 1
        assert "this is a bug" not in ran.err
        told.append("plan: what it leaves does not run: " in ran.err)
    assert any(told)


@pytest.mark.parametrize("size", [10**12, 7, 5])
def test_a_plan_that_promises_other_latents_than_it_names_is_refused(refused, idle_model, shrunk, rows, copied, size):
    folder = copied(shrunk)
    plan = folder / "plan.json"
    entry = json.loads(plan.read_text())
    entry["latent_size"]["before"] = size
    plan.write_text(json.dumps(entry))
    refused("verify", idle_model, folder, "--data", rows, told=["kept_latents contradicts its removals"])


def onnx_that_keeps_its_weights_in(place: str, folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weights])
    folder.mkdir(exist_ok=True)
    for part in ("encoder", "decoder"):
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / f"{part}.onnx"
        )


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret"])
def test_an_onnx_file_cannot_have_weights_read_from_elsewhere(refused, tmp_path, desk, place):
    (desk / "secret").write_bytes(bytes(16))
    onnx_that_keeps_its_weights_in(place, desk / "evil")
    refused(
        "bench", "evil", "evil", told=[f"evil/encoder.onnx: keeps its weights in {place!r}, expected a file beside it"]
    )


def test_an_onnx_file_cannot_have_weights_read_through_a_link(desk, refused):
    (desk / "secret").write_bytes(bytes(16))
    onnx_that_keeps_its_weights_in("w.bin", desk / "evil")
    (desk / "evil" / "w.bin").symlink_to(desk / "secret")
    refused(
        "bench", "evil", "evil", told=["evil/encoder.onnx: keeps its weights in 'w.bin', expected a file beside it"]
    )


# --- names


NAMES = ["<script>alert(1)</script>", "\x1b]0;owned\x07", "\x1b[2J", "a\u202eb", "'\"`$(touch owned)"]


@pytest.mark.parametrize("name", NAMES)
def test_names_from_files_cannot_steer_a_terminal(idle_model, rows, copied, refused, name, vaeprune):
    model = copied(idle_model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architecture": {"name": name}}))
    refused("analyze", model, "--data", rows, told=["architecture: got "])
    (model / "config.json").write_text(json.dumps(config | {name: 1}))
    refused("analyze", model, "--data", rows, told=["config.json: got the keys"])
    Path("pictures").mkdir()
    plain = tiles(1, seed=1).numpy()[0]
    Image.fromarray(plain).save("pictures/0.png")
    Path("pictures", f"1{name.replace('/', '')}.png").write_bytes(b"no picture")
    refused("analyze", idle_model, "--data", "pictures", told=["is not a readable picture"])
