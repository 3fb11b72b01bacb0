"""Where tensors lie once merc's operators are loaded."""

import ctypes
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from merc.kernels.library import loaded

pytestmark = pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")

GROWTH = """
import ctypes, sys
import torch
from merc.kernels.library import loaded
from merc.memory import keep_freed_memory

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("size", *"abcdefghi")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
keep_freed_memory()
assert sys.argv[1] == "PyTorch" or loaded()
tensors = [torch.empty(2**18) for _ in range(50)]
small = [libc.malloc(size) for size in range(24, 96, 8) for _ in range(100)]
before = libc.mallinfo2().size
del tensors[::2]
again = [torch.empty(2**18) for _ in range(25)]
print(libc.mallinfo2().size - before)
"""


def growth(allocator: str) -> int:
    """Bytes that the heap grows by when half of its tensors are replaced by others of the same size."""
    done = subprocess.run([sys.executable, "-c", GROWTH, allocator], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
def test_a_tensor_fits_where_one_of_its_size_was() -> None:
    assert growth("merc") <= 3 * 2**20  # of 25 MiB; with glibc 2.36 6 MiB by PyTorch's allocator


@pytest.mark.parametrize("numbers", [1, 3, 64, 1000, 10**6])
def test_tensors_begin_with_a_cache_line(numbers: int) -> None:
    kept = [torch.empty(numbers + i) for i in range(20)]
    assert all(x.data_ptr() % 64 == 0 for x in kept)


def test_a_tensor_may_be_empty_and_grow() -> None:
    x = torch.empty(0)
    assert x.data_ptr() == 0
    assert x.resize_(1000).fill_(1).sum() == 1000


@pytest.mark.parametrize("numbers", [2**50, 2**61])
def test_a_tensor_that_is_too_large_is_said_to_be(numbers: int) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=f"no memory for a tensor of {numbers} bytes"):
        torch.empty(numbers, dtype=torch.uint8)


def test_the_profiler_sees_what_is_allocated_and_released() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        x = torch.empty(10**6)
        del x
    sizes = [event.cpu_memory_usage for event in seen.events()]
    assert 4 * 10**6 in sizes
    assert -4 * 10**6 in sizes
