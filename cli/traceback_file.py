"""The traceback of an error nobody expected, kept in a file that can be sent to whoever mends it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime", "safetensors", "typer")


def keep_traceback(error: BaseException) -> Path | None:
    """Write the traceback of `error` into the system's folder for temporary files, readable by its owner alone.

    Lines of code and versions are all there is in it: no values of variables, no environment, no command line. None
    where the system has no such folder: it then falls back on the working folder, which may be a model's.
    """
    try:
        folder = tempfile.gettempdir()
        if Path(folder).resolve() == Path.cwd():
            return None
        handle, name = tempfile.mkstemp(prefix="vaeprune-traceback-", suffix=".txt", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join([*_versions(), "", *traceback.format_exception(error)]))
    except OSError:
        return None
    return Path(name)


def _versions() -> list[str]:
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in _LIBRARIES}
    from vaeprune import __version__

    return [
        f"vaeprune {__version__}, Python {sys.version.split()[0]}, {platform.system()} {platform.machine()}",
        ", ".join(f"{name} {found[name]}" for name in _LIBRARIES if name in found),
    ]
