"""Starting up: what `--help` and `import vaeprune` load, what they name, and how the command is found."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import typer
from vaeprune.cli.app import SUMMARIES, app

import vaeprune as package

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "PIL",
    "rich",
    "matplotlib",
    "jinja2",
)
COMMANDS = [
    "train",
    "analyze",
    "shrink",
    "grow",
    "verify",
    "export",
    "encode",
    "report",
    "sample",
    "reconstruct",
    "traverse",
    "bench",
    "serve",
]
PUBLIC = [
    "Analysis",
    "Evidence",
    "Plan",
    "Posterior",
    "VAE",
    "adapt",
    "analyze",
    "cut",
    "export_onnx",
    "grow",
    "load",
    "plan",
    "shrink",
    "train",
    "verify",
    "write_report",
]


def heavy_modules_after(code: str) -> list[str]:
    """Which of HEAVY a fresh interpreter has loaded after running `code`."""
    report = f"import sys; print(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=str)
def test_help_loads_no_torch(words):
    assert heavy_modules_after(f"from vaeprune.cli.__main__ import run; assert run({words!r}) == 0") == []


def test_a_wrong_option_is_refused_without_torch():
    assert heavy_modules_after("from vaeprune.cli.__main__ import run; assert run(['train', '--nope']) == 2") == []


UNUSED = ("onnx", "onnxruntime", "onnxscript", "torchvision", "matplotlib", "jinja2", "PIL", "pythae", "diffusers")


def test_analyze_loads_nothing_that_it_does_not_use(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import sys
from vaeprune.cli.__main__ import run
from vaeprune.architectures import DenseVAE
from vaeprune.model_folder import ModelFolder, write_model_folder
write_model_folder(ModelFolder(DenseVAE((1, 28, 28), (8,), (8,), 3)), __import__("pathlib").Path("model"), "")
assert run(["analyze", "model", "--data", "tiles", "--rows", "300", "--quiet"]) == 0
print(*(m for m in {UNUSED!r} if m in sys.modules), file=sys.stderr)
""",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr.splitlines()[-1].split() == []


def test_the_import_check_can_fail():
    assert "torch" in heavy_modules_after("import vaeprune; vaeprune.analyze; from vaeprune.cli.__main__ import run")


def test_import_vaeprune_loads_no_torch():
    assert heavy_modules_after("import vaeprune; dir(vaeprune); vaeprune.__version__") == []


def test_public_names_are_pinned():
    assert sorted(package.__all__) == PUBLIC
    assert dir(package) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there_and_documented(name):
    found = getattr(package, name)
    assert found.__name__ == name
    assert found.__doc__


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'vaeprune' has no attribute 'prune'$"):
        package.prune  # noqa: B018


def test_module_prints_the_version(process):
    ran = process("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"{package.__version__}\n", "")


def test_version_is_that_of_the_distribution():
    assert package.__version__ == version("vaeprune")


def test_no_arguments_print_the_help(vaeprune):
    bare, asked, short = vaeprune(), vaeprune("--help"), vaeprune("-h")
    assert (bare.code, bare.err) == (0, "")
    assert bare.out.startswith("Usage: vaeprune [OPTIONS] COMMAND [ARGS]...")
    assert bare.out.strip() == asked.out.strip() == short.out.strip()


def test_help_lists_each_command_with_a_sentence(vaeprune):
    lines = vaeprune("--help").out.partition("Commands:\n")[2].splitlines()
    named = [line.split(maxsplit=1) for line in lines]
    assert [name for name, _ in named] == COMMANDS
    assert all(sentence.endswith(".") for _, sentence in named)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_summary_is_the_first_sentence_of_its_command(command):
    told = typer.main.get_command(app).commands[command].help
    assert told.partition("\n\n")[0].replace("\n", " ") == SUMMARIES[command]


def test_help_loads_no_command_and_a_command_only_itself():
    words = "import sys; from vaeprune.cli.__main__ import run; run({}); print(*sys.modules)"
    loaded = {}
    for asked in (["--help"], ["bench", "--help"]):
        done = subprocess.run([sys.executable, "-c", words.format(asked)], capture_output=True, text=True, check=True)
        modules = done.stdout.splitlines()[-1].split()
        loaded[asked[0]] = [command for command in COMMANDS if f"vaeprune.cli.{command}" in modules]
    assert loaded == {"--help": [], "bench": ["bench"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_every_option(vaeprune, command):
    ran = vaeprune(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: vaeprune {command} ")
    parameters = typer.main.get_command(app).commands[command].params
    assert [p.name for p in parameters if p.param_type_name == "option" and not p.help] == []
    assert [option for p in parameters for option in p.opts if option.startswith("--") and option not in ran.out] == []


def test_console_script_is_the_main_function():
    (script,) = entry_points(group="console_scripts", name="vaeprune")
    assert script.value == "vaeprune.cli.__main__:main"
    start = "import sys; from importlib.metadata import entry_points; sys.argv = ['vaeprune', '--version']"
    call = "entry_points(group='console_scripts', name='vaeprune')['vaeprune'].load()()"
    done = subprocess.run([sys.executable, "-c", f"{start}; {call}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{package.__version__}\n", "")


def test_the_package_says_it_is_typed():
    assert (Path(package.__file__).parent / "py.typed").is_file()
