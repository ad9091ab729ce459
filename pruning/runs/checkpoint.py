"""Files of a training run's state: whole or absent, and only for the run that wrote them."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gshw.errors import GshwError
from gshw.files import write_atomically
from pruning.checks import unreadable

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """File of a run's state after each epoch, and what the run must be to go on from it.

    Parameters
    ----------
    path
        Written whole or not at all.
    run
        Plain values by name, or tables of them, that must be those of the run that wrote it.
    """

    path: Path
    run: dict[str, Any]

    def save(self, state: dict[str, Any]) -> None:
        """Write the state of a run.

        Raises
        ------
        GshwError
            Naming the file, where it cannot be written.
        """
        stream = io.BytesIO()
        torch.save({"format": FORMAT, "run": self.run, **state}, stream)
        write_atomically(self.path, stream.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None without a file.

        Raises
        ------
        GshwError
            Naming the file: unreadable, no checkpoint of ours, or of another run.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            told = unreadable(error)
            raise GshwError(f"{self.path}: truncated, or not a checkpoint: {told}") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise GshwError(f"{self.path}: not a checkpoint of this version")
        for key, wanted in self.run.items():
            found = state["run"].get(key)
            if found != wanted:
                place, found, wanted = _difference(key, found, wanted)
                raise GshwError(
                    f"{self.path}: is of a run with {place} {found}, not {wanted}; resume with the "
                    "same, or remove it to start anew"
                )
        return state


def _difference(key: str, found: Any, wanted: Any) -> tuple[str, Any, Any]:
    """The first place where two values differ, and what is there: deeper than tables that do."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for inner in {**found, **wanted}:
            if found.get(inner) != wanted.get(inner):
                return _difference(f"{key} {inner}", found.get(inner), wanted.get(inner))
    return key, found, wanted
