import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from merc.errors import MercError
from merc.files import atomic_folder

KILLED = """
import os, sys
from pathlib import Path
from merc.files import atomic_folder

replace, moves = os.replace, []

def killed(*paths):
    if len(moves) == int(sys.argv[2]):
        os._exit(9)
    moves.append(paths)
    replace(*paths)

os.replace = killed
with atomic_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "content").write_text("new")
"""


def write(target: Path, content: str) -> None:
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "content").write_text(content)


def fail_at(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """The moves of these numbers, from 0, find the disk full."""
    replace, count = os.replace, itertools.count()

    def move(source: Path, target: Path) -> None:
        if next(count) in numbers:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", move)


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write(tmp_path / "s", "old")
    fail_at(monkeypatch, number)
    with pytest.raises(MercError, match=r"No space left on device\. Nothing was changed there"):
        write(tmp_path / "s", "new")
    assert (tmp_path / "s" / "content").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_cannot_come_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "s", "old")
    fail_at(monkeypatch, 1, 2)
    with pytest.raises(MercError, match=r"What was there is in .*\.s\.merc-old\."):
        write(tmp_path / "s", "new")
    assert (tmp_path / ".s.merc-old" / "content").read_text() == "old"


@pytest.mark.parametrize("moves", range(3))
def test_a_kill_while_a_folder_is_replaced(tmp_path: Path, moves: int) -> None:
    target = tmp_path / "s"
    write(target, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target), str(moves)], check=False)
    assert killed.returncode == 9
    with pytest.raises(MercError, match="already exists"), atomic_folder(target):
        pass
    assert (target / "content").read_text() == ("new" if moves == 2 else "old")
    write(target, "newer")
    assert (target / "content").read_text() == "newer"
    assert "old" not in [path.read_text() for path in tmp_path.rglob("content")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "s", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "s")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "s" / "content").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["s"]
