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
# A call in a loop empties its registers. Left alone, GCC makes more of them the more operators there are in the file.
# What is long and called from several places is marked noinline: compiling a copy for each takes half as long again.
INLINING = ("-finline-limit=4000", "--param=inline-unit-growth=400", "--param=large-function-growth=2000")


class UnavailableError(Exception):
    """Why there are no operators; nothing depends on them but speed."""


@cache
def loaded() -> bool:
    """Load the operators, compiled before if need be; False, and a warning says why, where that cannot be."""
    if os.environ.get(CHOICE) == "off":
        return False
    try:
        load()
    except UnavailableError as error:
        logger.warning("merc computes without its own operators, which takes longer: %s", error)
        return False
    return True


def load() -> Path:
    """Load the operators of this version for this processor and this PyTorch, compiled before if need be.

    Tensors of the CPU are allocated by merc from then on (``allocator.h``).

    Returns:
        The file they are in.

    Raises:
        UnavailableError: no compiler, it failed, there is no place for the file, or it cannot be loaded.
    """
    flags = [*FLAGS, *INLINING, *_of_processor(), *_of_torch()]
    try:
        path = _folder() / f"kernels-{_fingerprint(flags)}.so"
        if not path.exists():
            _compile(flags, path)
        try:
            torch.ops.load_library(str(path))
        except OSError:  # made on a machine with other libraries, or damaged
            _compile(flags, path)
            torch.ops.load_library(str(path))
    except OSError as error:
        raise UnavailableError(str(error.__cause__ or error)) from error
    torch.ops.merc.allocate_tensors()
    return path


def _compiler() -> list[str]:
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise UnavailableError(f"the environment variable CXX is no command: {error}.") from error
    for candidate in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    if chosen:
        raise UnavailableError(f"there is no {chosen[0]}, which the environment variable CXX names.")
    raise UnavailableError("there is no C++ compiler; install g++, or name one by the environment variable CXX.")


def _of_processor() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        capability = "DEFAULT"
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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a process without a home
        raise UnavailableError(f"no folder for the compiled file ({error}); set XDG_CACHE_HOME.") from error
    return folder


def _fingerprint(flags: list[str]) -> str:
    """Of everything that decides what comes out: a file is never used on a processor that it was not made for."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    for part in (*flags, torch.__version__, str(torch.version.git_version), *platform.libc_ver(), *_processor()):
        digest.update(f"\0{part}".encode())
    return digest.hexdigest()[:16]


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _compile(flags: list[str], path: Path) -> None:
    compiler = _compiler()
    print("Compiling merc's operators for this processor, once; it takes about a minute.", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        source = str(SOURCES / "kernels.cpp")
        command = [*compiler, *flags, source, "-o", str(made), "-ltorch_cpu", "-lc10"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not made.exists():
            raise UnavailableError(f"{compiler[0]} failed.\n{_what_failed(result.stderr)}")
        made.replace(path)  # whole or absent, also beside another process that does the same


def _what_failed(text: str, most: int = 10) -> str:
    lines = text.splitlines()
    return "\n".join([line for line in lines if " error: " in line][:most] or lines[-most:])
