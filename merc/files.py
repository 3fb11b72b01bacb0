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
        kept = f"What was there is in {_aside(target)}" if _was_left_aside(target) else "Nothing was changed there"
        raise MercError(
            f"Cannot write {target}: {error.strerror or error}. {kept}. "
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

    A folder that it replaces waits aside for it, and comes back if it fails; after a kill in between, at the next call.

    Args:
        target: the folder to create, or a link to it.
        overwrite: replace an existing folder; without it an existing folder is an error.

    Raises:
        MercError: ``target`` exists and ``overwrite`` is false, the disk is full, or the parent cannot be written.
    """
    target = target.resolve()
    with _explain_os_errors(target):
        if _was_left_aside(target):
            os.replace(_aside(target), target)
        if target.exists() and not overwrite:
            raise MercError(f"{target} already exists. Choose another folder, or add overwrite=true to replace it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for path in temporary.rglob("*"):
                _sync(path)
            if target.exists():
                _exchange(temporary, target)
            else:
                os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, target: Path) -> None:
    """Swap two folders, or change nothing."""
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)  # of a process killed after the new one took its place
    os.replace(target, aside)
    try:
        os.replace(new, target)
    finally:
        os.replace(aside, new if target.exists() else target)


def _aside(target: Path) -> Path:
    """Where a folder waits for another to take its place; no temporary one is ever called so."""
    return target.with_name(f".{target.name}.merc-old")


def _was_left_aside(target: Path) -> bool:
    return _aside(target).exists() and not target.exists()


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
