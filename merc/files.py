"""Files that are either whole or absent: atomic writes and checksums."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merc.errors import MercError


@contextmanager
def _explain_os_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MercError(
            f"Cannot write {target}: {error.strerror or error}. Nothing was changed there. "
            "Free some space or choose a folder that you may write to, then run the same command again."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it replaces ``target`` in one step.

    Raises:
        MercError: the disk is full, or the folder cannot be written.
    """
    with _explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def discard_temporaries(target: Path) -> None:
    """Delete what processes that were killed inside :func:`atomic_file` left beside ``target``."""
    for leftover in target.parent.glob(f".{target.name}.*"):
        leftover.unlink()


@contextmanager
def atomic_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``target``; on success it becomes ``target``.

    Args:
        target: the folder to create.
        overwrite: replace an existing folder; without it an existing folder is an error.

    Raises:
        MercError: ``target`` exists and ``overwrite`` is false, the disk is full, or the parent cannot be written.
    """
    if target.exists() and not overwrite:
        raise MercError(f"{target} already exists. Choose another folder, or add overwrite=true to replace it.")
    with _explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for path in temporary.rglob("*"):
                _sync(path)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
                os.replace(target, old)
                os.replace(temporary, target)
                shutil.rmtree(old)
            else:
                os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target`` atomically."""
    with atomic_file(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` to ``target`` as indented JSON, atomically. NaN is refused: it is not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
