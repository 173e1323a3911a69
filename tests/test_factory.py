"""Import paths typed by the user, and what comes out of foreign code: one line, their words, file and line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vaeprune.errors import DataError, ModelError, UsageError
from vaeprune.factory import call, import_path, own_words, parse_arguments, quoted


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """sys.path and sys.modules as they were before."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = dict(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.clear()
    sys.modules.update(modules)


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_class_in_a_file_is_found(tmp_path: Path) -> None:
    path = file(tmp_path, "vae_one.py", "class VAE:\n    size = 3\n")
    assert import_path(f"{path}:VAE").size == 3


def test_a_function_in_a_module_of_the_working_directory_is_found(tmp_path: Path) -> None:
    file(tmp_path, "pack_one/__init__.py", "")
    file(tmp_path, "pack_one/sub.py", "def build():\n    return 7\n")
    assert import_path("pack_one.sub:build")() == 7


def test_a_nested_name_is_found(tmp_path: Path) -> None:
    path = file(tmp_path, "vae_two.py", "class Zoo:\n    class VAE:\n        pass\n")
    assert import_path(f"{path}:Zoo.VAE").__name__ == "VAE"


def test_the_folder_of_the_file_and_the_working_directory_are_importable(tmp_path: Path) -> None:
    file(tmp_path, "deep/layers_beside.py", "WIDTH = 4\n")
    file(tmp_path, "layers_here.py", "DEPTH = 2\n")
    path = file(
        tmp_path, "deep/vae_three.py",
        "from layers_beside import WIDTH\nfrom layers_here import DEPTH\ndef build():\n    return WIDTH, DEPTH\n",
    )  # fmt: skip
    assert import_path(f"{path}:build")() == (4, 2)


def test_a_file_may_import_when_it_is_called(tmp_path: Path) -> None:
    file(tmp_path, "deep/late_layers.py", "WIDTH = 4\n")
    path = file(tmp_path, "deep/vae_four.py", "def build():\n    import late_layers\n    return late_layers.WIDTH\n")
    assert import_path(f"{path}:build")() == 4


def test_a_file_named_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    """`torch.py` or `json.py` in one's folder must not break everything that runs afterwards."""
    import json

    path = file(tmp_path, "json.py", "def build():\n    return 1\n")
    assert import_path(f"{path}:build")() == 1
    assert sys.modules["json"] is json


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    first = file(tmp_path, "a/model.py", "def build():\n    return 'a'\n")
    second = file(tmp_path, "b/model.py", "def build():\n    return 'b'\n")
    assert [import_path(f"{p}:build")() for p in (first, second, first)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("noname", "is not an import path; expected path/to/file.py:Name or package.module:name"),
        (":VAE", "is not an import path"),
        ("file.py:", "is not an import path"),
        ("nowhere.py:VAE", "nowhere.py: no such file"),
    ],
)
def test_what_is_no_import_path_is_refused(path: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        import_path(path)
    assert words in str(caught.value)


def test_a_name_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    path = file(tmp_path, "vae_five.py", "class BetaVAE:\n    pass\nVAE = 3\n")
    with pytest.raises(UsageError, match=r"vae_five\.py has no class or function 'VAE'; it has BetaVAE"):
        import_path(f"{path}:VAE")


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="No module named 'not_a_module_anywhere'"):
        import_path("not_a_module_anywhere:VAE")


def test_an_import_that_fails_is_quoted_with_its_line_and_leaves_no_module(tmp_path: Path) -> None:
    path = file(tmp_path, "broken_vae.py", "X = 1\nraise ValueError('no licence')\n")
    with pytest.raises(ModelError, match=r"ValueError: no licence at broken_vae\.py:2: raise ValueError"):
        import_path(f"{path}:VAE")
    assert "broken_vae" not in sys.modules


def test_a_syntax_error_is_quoted_with_its_file_and_line(tmp_path: Path) -> None:
    path = file(tmp_path, "crooked_vae.py", "x = 1\nclass VAE(:\n    pass\n")
    with pytest.raises(ModelError, match=r"SyntaxError: .*crooked_vae\.py, line 2"):
        import_path(f"{path}:VAE")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    raise KeyError('latent')", r"KeyError: 'latent' at vae_six\.py:2: raise KeyError\('latent'\)"),
        ("    raise SystemExit(3)", r"it called exit: 3 at vae_six\.py:2"),
        ("    import sys; sys.exit('bye')", r"it called exit: bye at vae_six\.py:2"),
        ("    assert 1 == 2", r"AssertionError: .* ?at vae_six\.py:2: assert 1 == 2"),
        ("    return size", r"NameError: name 'size' is not defined at vae_six\.py:2"),
    ],
)
def test_what_a_factory_raises_is_quoted_with_file_and_line(tmp_path: Path, body: str, words: str) -> None:
    path = file(tmp_path, "vae_six.py", f"def build():\n{body}\n")
    with pytest.raises(ModelError, match=words):
        call(import_path(f"{path}:build"), {}, "vae_six.py:build")


def test_a_missing_argument_is_quoted(tmp_path: Path) -> None:
    path = file(tmp_path, "vae_seven.py", "def build(latent_dim):\n    return latent_dim\n")
    with pytest.raises(ModelError, match="missing 1 required positional argument: 'latent_dim'"):
        call(import_path(f"{path}:build"), {}, "vae_seven.py:build")


def test_what_foreign_code_prints_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, "loud_vae.py", "print('loading')\ndef build():\n    print('building')\n    return 1\n")
    call(import_path(f"{path}:build"), {}, "loud_vae.py:build")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "loading\nbuilding\n"


def test_errors_of_this_package_and_interrupts_pass() -> None:
    with pytest.raises(DataError, match=r"^mine$"), own_words("x"):
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), own_words("x"):
        raise KeyboardInterrupt


def test_long_and_many_lined_words_are_cut_to_one_line() -> None:
    assert quoted(ValueError("\n\n first " + "x" * 900 + "\nsecond")) == "ValueError: first " + "x" * 294
    assert quoted(ValueError()) == "ValueError: "


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3), ("a=-2", -2), ("a=1e-3", 1e-3), ("a=0.5", 0.5), ("a=true", True), ("a=False", False),
        ("a=none", None), ("a=relu", "relu"), ("a=", ""), ("a=32,64", [32, 64]), ("a=[32,64]", [32, 64]),
        ("a=(1,)", [1]), ("a=[4]", [4]), ("a=x=y", "x=y"), ("a=[true,0.5,b]", [True, 0.5, "b"]),
    ],
)  # fmt: skip
def test_arguments_are_read(text: str, value: object) -> None:
    found = parse_arguments([text])["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["latent_dim", "=3", "1a=3", "a-b=3", "a b=3"])
def test_what_is_no_argument_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--model-arg: got .*, expected name=value, like latent_dim=20"):
        parse_arguments([text])
