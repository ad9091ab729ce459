"""Files, and folders of files, that are either whole or absent."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gshw.errors import GshwError


def check_output_file(path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work; None is no file.

    Raises
    ------
    GshwError
        When its folder is missing or not writable, or it is a folder itself.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise GshwError(f"{path}: cannot be written: No such file or directory")
    if path.is_dir():
        raise GshwError(f"{path}: cannot be written: Is a directory")
    if not os.access(path.parent, os.W_OK):
        raise GshwError(f"{path}: cannot be written: Permission denied")


def check_output_files(*paths: Path | None) -> None:
    """The same for several files, of which no two may be one.

    Raises
    ------
    GshwError
        As :func:`check_output_file`, and for a file that is given twice.
    """
    seen: set[Path] = set()
    for path in paths:
        check_output_file(path)
        if path is None:
            continue
        if path.resolve() in seen:
            raise GshwError(f"{path}: cannot be written twice")
        seen.add(path.resolve())


def check_output_folder(folder: Path | None, *, force: bool) -> None:
    """Refuse a folder that is not empty, unless forced; None is no folder.

    Raises
    ------
    GshwError
        When it is not empty, or a file.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise GshwError(f"{folder}: must be a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise GshwError(f"{folder}: must be an empty folder; --force overwrites files in it")


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


def _make_folder(folder: Path, purpose: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise GshwError(f"{purpose}: cannot be made: Not a directory") from None
    except OSError as error:
        raise GshwError(f"{purpose}: cannot be made: {error.strerror}") from None


@contextmanager
def staged(folder: Path, *, last: str = "") -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the body ends; none after an error.

    It lies in or beside ``folder``, where moving is no copying, and tools that see a /tmp of their
    own find it.

    Parameters
    ----------
    folder
        Made if missing, with the folders above it.
    last
        Name of the file that moves last.

    Raises
    ------
    GshwError
        When the folder cannot be made or written.
    """
    place = folder if folder.is_dir() else folder.absolute().parent
    _make_folder(place, folder)
    try:
        temporary = tempfile.TemporaryDirectory(dir=place, prefix=f".{folder.name}.")
    except OSError as error:
        raise GshwError(f"{folder}: cannot be written: {error.strerror}") from None
    with temporary as name:
        stage = Path(name)
        yield stage
        paths = [path.relative_to(stage) for path in stage.rglob("*") if path.is_file()]
        for path in paths:
            _make_folder((folder / path).parent, folder / path)
            if (folder / path).is_dir():
                raise GshwError(f"{folder / path}: cannot be written: Is a directory")
        for path in sorted(paths, key=lambda path: (path.name == last, path)):
            try:
                os.replace(stage / path, folder / path)
            except OSError as error:
                raise GshwError(f"{folder / path}: cannot be written: {error.strerror}") from None


def write_folder(
    folder: Path, contents: Mapping[str, bytes | str], *, last: str = ""
) -> list[Path]:
    """Write files by their paths in ``folder``, all of them or none; their paths.

    Parameters
    ----------
    last
        As of :func:`staged`.

    Raises
    ------
    GshwError
        Naming the file that cannot be written.
    """
    with staged(folder, last=last) as stage:
        for name, data in contents.items():
            try:
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                (stage / name).write_bytes(data.encode() if isinstance(data, str) else data)
            except OSError as error:
                raise GshwError(f"{folder / name}: cannot be written: {error.strerror}") from None
    return [folder / name for name in contents]
