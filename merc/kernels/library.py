"""Compiling and loading the operators."""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
CHOICE = "MERC_KERNELS"
"""Environment variable: ``off`` leaves everything to PyTorch's operators."""

# No flag may change what is computed: neither the order of sums nor NaN and infinity.
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")


class UnavailableError(Exception):
    """Why there are no operators; nothing depends on them but speed."""


@cache
def loaded() -> bool:
    """Load the operators, compiled before if need be; False, and a warning says why, where that cannot be."""
    if os.environ.get(CHOICE) == "off":
        return False
    try:
        torch.ops.load_library(str(library()))
    except (UnavailableError, OSError) as error:
        logger.warning("merc computes without its own operators, which takes longer: %s", error)
        return False
    return True


def library() -> Path:
    """The compiled operators of this version, for this processor and this PyTorch.

    Raises:
        UnavailableError: no compiler, it failed, or there is no place for the file.
    """
    compiler = _compiler()
    command = [*compiler, *FLAGS, *_of_processor(), *_of_torch()]
    path = _folder() / f"kernels-{_fingerprint(command)}.so"
    if not path.exists():
        _compile(command, path)
    return path


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    for candidate in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise UnavailableError("there is no C++ compiler; install g++, or name one by the environment variable CXX.")


def _of_processor() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    width = ["-mprefer-vector-width=512"] if capability == "AVX512" else []
    return ["-march=native", *width, f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]


def _of_torch() -> list[str]:
    root = Path(torch.__file__).parent
    return [
        "-DAT_PARALLEL_OPENMP=1",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-isystem{root / 'include'}",
        f"-isystem{root / 'include/torch/csrc/api/include'}",
        f"-L{root / 'lib'}",
    ]


def _folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merc"
    except RuntimeError as error:  # a process without a home
        raise UnavailableError("there is no home directory; set XDG_CACHE_HOME.") from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME.") from error
    return folder


def _fingerprint(command: list[str]) -> str:
    """Of everything that decides what comes out: a file is never used on a processor that it was not made for."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    for part in (*command, torch.__version__, torch.version.git_version, *_processor()):
        digest.update(f"\0{part}".encode())
    return digest.hexdigest()[:16]


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _compile(command: list[str], path: Path) -> None:
    print("Compiling merc's operators for this processor, once; it takes some twenty seconds.", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            libraries = ["-ltorch_cpu", "-lc10"]
            result = subprocess.run(
                [*command, str(SOURCES / "kernels.cpp"), "-o", str(made), *libraries],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                raise UnavailableError(f"{command[0]} failed:\n{_tail(result.stderr)}")
            made.replace(path)  # whole or absent, also beside another process that does the same
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error}") from error


def _tail(text: str, lines: int = 10) -> str:
    return "\n".join([line for line in text.splitlines() if "error" in line][:lines] or text.splitlines()[-lines:])
