"""Several processes on one job, as torchrun starts them: which one this is, and what the others found.

Without torchrun, and inside `alone`, there is one rank. All ranks call what is collective in the same order.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from vaeprune.errors import RankError

Found = TypeVar("Found")

_PATIENCE = datetime.timedelta(days=7)  # one rank plans while the others wait; a rank that dies is noticed at once
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "Socket closed",
)
_alone: list[bool] = []


def world() -> int:
    """How many ranks work together."""
    return 1 if _alone or not _together() else dist.get_world_size()


def rank() -> int:
    """The number of this one, from 0 on."""
    return 0 if _alone or not _together() else dist.get_rank()


def gathered(value: Found) -> list[Found]:
    """What each rank gives, in order of the ranks; collective."""
    if world() == 1:
        return [value]
    found: list[Found | None] = [None] * world()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def from_first(make: Callable[[], Found]) -> Found:
    """What rank 0 makes, alone; the others wait for it. Collective."""
    if world() == 1:
        return make()
    made: list[Found | None] = [None]
    if rank() == 0:
        with alone():
            made[0] = make()
    dist.broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[return-value]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nothing inside is collective."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The ranks that torchrun started work together inside. Raises RankError if one of them is lost."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in _LOST):
            raise RankError("another rank ended before its work was done", "see what it said") from error
        raise
    finally:
        if _together():
            dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
