"""The text of Python's own library: symbols to learn from, and modules held out."""

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError

_CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
N_SYMBOLS = len(_CHARACTERS) + 1
"""Newline, printable ASCII, and one for all else."""

_VALIDATION_EVERY = 12


@dataclass(frozen=True)
class Corpus:
    """Symbols of the text, shape (n,), uint8, and what it was made of."""

    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    hash: str


def encode_text(text: str) -> NDArray[np.uint8]:
    """Symbols of a text, shape (n_characters,), uint8; ``N_SYMBOLS - 1`` for the unusual."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    table = np.full(128, N_SYMBOLS - 1, dtype=np.uint8)
    table[[ord(character) for character in _CHARACTERS]] = np.arange(len(_CHARACTERS))
    return np.where(codes < 128, table[np.minimum(codes, 127)], N_SYMBOLS - 1).astype(np.uint8)


@cache
def corpus() -> Corpus:
    """The modules at the top of the running Python's library, by name; every twelfth is held out.

    Raises
    ------
    GshwError
        For a Python without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"), key=lambda path: path.name)
    texts = [encode_text(path.read_text(encoding="utf-8", errors="replace")) for path in files]
    if sum(text.size for text in texts) < 1_000_000:
        raise GshwError(f"{folder}: must hold the sources of Python's library, 1 MB at least")
    held = [i % _VALIDATION_EVERY == _VALIDATION_EVERY // 2 for i in range(len(texts))]
    train_text = np.concatenate([t for t, out in zip(texts, held, strict=True) if not out])
    validation = np.concatenate([t for t, out in zip(texts, held, strict=True) if out])
    digest = hashlib.sha256(train_text.tobytes())
    digest.update(validation.tobytes())
    return Corpus(train=train_text, validation=validation, hash=digest.hexdigest())
