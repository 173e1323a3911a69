"""Other people's classes by import path: `path/to/file.py:Name` or `package.module:name`, typed by the user.

No import path is ever taken from a file that was loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vaeprune.errors import ModelError, UsageError, VaepruneError

_OWN: set[str] = set()  # modules registered here, from users' files


def import_path(path: str) -> Callable[..., Any]:
    """The class or function behind `file.py:Name` or `module.sub:name`.

    The file's folder and the working directory are importable, as with `python file.py`. Raises UsageError if there is
    no such thing, ModelError with its own words, file and line if importing it fails.
    """
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise UsageError(f"{path!r}: is not an import path", "expected path/to/file.py:Name or package.module:name")
    module = _import(where, path)
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)  # type: ignore[assignment]
    if not callable(found):
        names = ", ".join(n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n)))[:200]
        raise UsageError(f"{path}: {where} has no class or function {name!r}", f"it has {names}")
    return found


def call(
    factory: Callable[..., Any], arguments: Mapping[str, Any], path: str, error_class: type[VaepruneError] = ModelError
) -> Any:
    """`factory(**arguments)`; whatever it raises becomes one line with its words, its file and line."""
    if not _takes(factory, arguments):
        made = factory.__init__ if inspect.isclass(factory) else factory
        code = getattr(inspect.unwrap(made), "__code__", None)
        at = f" at {Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""
        try:
            return factory(**arguments)
        except TypeError as error:
            raise error_class(f"{path}: {error}{at}", "pass what it takes as --model-arg name=value") from error
    with own_words(path, error_class):
        return factory(**arguments)


@contextlib.contextmanager
def own_words(path: str, error_class: type[VaepruneError] = ModelError) -> Iterator[None]:
    """Code of the user runs inside: what it prints goes to stderr, what it raises is quoted with file and line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (VaepruneError, KeyboardInterrupt, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # anything may come out of foreign code
        raise error_class(f"{path}: {quoted(error)}") from error


def quoted(error: BaseException) -> str:
    """An error's type, words, and the last line of code outside torch and this package that led to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _internal(f.filename)]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    words = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
    kind = "it called exit" if isinstance(error, SystemExit) else type(error).__name__
    return f"{kind}: {words[:300]}{at}"


def _takes(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether the signature allows these arguments; True where there is none to be read."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):
        return True
    try:
        signature.bind(**arguments)
    except TypeError:
        return False
    return True


def parse_arguments(texts: list[str]) -> dict[str, Any]:
    """`name=value` words as keyword arguments: integers, floats, true, false, none, lists with commas, else text."""
    arguments = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-arg: got {text!r}, expected name=value, like latent_dim=20")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    if "," in text or (text[:1] in ("[", "(") and text[-1:] in ("]", ")")):
        return [_value(part) for part in text.strip("[]()").split(",") if part.strip()]
    return text


def _import(where: str, path: str) -> ModuleType:
    if where.endswith(".py"):
        file = Path(where)
        if not file.is_file():
            raise UsageError(f"{where}: no such file", "the part before the colon is a Python file or a module")
        with _importable(file.resolve().parent), own_words(path):
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None  # noqa: S101  a .py suffix always has a loader
            assert spec.loader is not None  # noqa: S101
            module = importlib.util.module_from_spec(spec)
            if file.stem not in sys.modules or file.stem in _OWN:  # a json.py must not replace the library
                sys.modules[file.stem] = module
                _OWN.add(file.stem)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                if sys.modules.get(file.stem) is module:
                    del sys.modules[file.stem]
                raise
            return module
    with _importable(Path.cwd()), own_words(path):
        return importlib.import_module(where)


@contextlib.contextmanager
def _importable(folder: Path) -> Any:
    """Folders stay importable: a class may import more when it is called."""
    for entry in (str(Path.cwd()), str(folder)):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    yield


def _internal(file: str) -> bool:
    parts = Path(file).parts
    return "torch" in parts or "importlib" in parts or "<frozen" in file or str(Path(__file__).parent) in file
