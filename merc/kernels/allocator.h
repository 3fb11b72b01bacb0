// Where tensors lie. PyTorch's allocator asks the C library for aligned memory, and glibc cuts what it finds to measure:
// splinters of up to a hundred bytes stay before and behind every tensor. Something small settles there, and when the
// tensor is gone, its room is too narrow for the next one of the same size.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdlib>

namespace merc {

// Takes somewhat more than is needed and aligns by itself, so that the same request fits the same room again.
class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* at = bytes ? aligned(bytes) : nullptr;
    c10::profiledCPUMemoryReporter().New(at, bytes);
    return {at, at, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static constexpr size_t LINE = 64, SPARE = LINE + sizeof(void*);

  // Before the address lies the one that the C library gave.
  static void* aligned(size_t bytes) {
    void* given = bytes < SIZE_MAX - SPARE ? std::malloc(bytes + SPARE) : nullptr;
    if (!given) {
      c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "There is no memory for a tensor of ", bytes, " bytes.");
    }
    void* at = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(given) + SPARE - 1) / LINE * LINE);
    static_cast<void**>(at)[-1] = given;
    return at;
  }

  static void release(void* at) {
    if (!at) return;
    c10::profiledCPUMemoryReporter().Delete(at);
    std::free(static_cast<void**>(at)[-1]);
  }
};

// From now on; tensors that are there already are released as they were made.
inline void allocate_tensors() {
  static auto* allocator = new Allocator;  // for as long as there may be tensors
  c10::SetCPUAllocator(allocator);
}

}  // namespace merc
