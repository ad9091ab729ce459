"""Files that are either whole or absent."""

import os
import tempfile
from pathlib import Path

from gshw.errors import GshwError


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write to a temporary file beside ``path`` and rename it into place.

    Raises
    ------
    GshwError
        Naming the file, when its folder is missing or not writable; nothing is left behind.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise GshwError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise GshwError(f"{path}: cannot be written: {error.strerror}") from None
