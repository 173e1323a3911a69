"""Files that promise gigabytes and take no room on the disk, and how much memory this process has taken at most."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

HUGE = (1 << 15, 1 << 15)  # 4 GiB of float32
SOME = 500_000_000


def hole(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """A safetensors file of float32 zeros that are nowhere on the disk, and would be in memory."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def peak() -> int:
    """Bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
