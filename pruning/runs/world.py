"""Processes that train together: who they are, what they share, who tells of a mistake."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from gshw.errors import GshwError


class SharedError(GshwError):
    """An error that all processes raise; one of them should tell it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def agree(self, error: GshwError | None) -> None:
        """Raise the first error that any process has, in all of them, as a ``SharedError``.

        Without this, a mistake that one process meets alone would leave the others waiting.
        """
        errors = [error and str(error)]
        if self.size > 1:
            errors = [None] * self.size
            dist.all_gather_object(errors, error and str(error))
        found = [text for text in errors if text is not None]
        if found:
            raise SharedError(found[0])

    def share(self, compute: Callable[[], Any]) -> Any:
        """What rank 0 computes, or its error, in all processes: they may lack its files."""
        value, error = None, None
        if self.rank == 0:
            try:
                value = compute()
            except GshwError as raised:
                error = raised
        self.agree(error)
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box)
            value = box[0]
        return value

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block without communication whose errors reach all processes at its end."""
        error = None
        try:
            yield
        except GshwError as raised:
            error = raised
        self.agree(error)


@contextmanager
def join_world() -> Iterator[World]:
    """The processes that torchrun started, over NCCL or gloo; else this one alone.

    Raises
    ------
    GshwError
        For more processes on a machine than it has GPUs, if it has any.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if n_gpus and local_rank >= n_gpus:
        raise GshwError(f"process {local_rank} of this machine has no GPU; it has {n_gpus}")
    device = torch.device("cuda", local_rank) if n_gpus else torch.device("cpu")
    if n_gpus:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if n_gpus else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()


@contextmanager
def told_once(world: World) -> Iterator[None]:
    """What all processes raise is told by the first one; the others leave with its status."""
    try:
        yield
    except SharedError:
        if world.rank:
            raise SystemExit(2) from None
        raise
