#include "tests/native/counted_memory.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

int scopes = 0;
int64_t held_bytes = 0, most_bytes = 0;

// Each block has its size before it: what malloc gives for the same request varies.
constexpr std::size_t kHeader = alignof(std::max_align_t);

void* Allocate(std::size_t size) {
  auto* const block = static_cast<std::byte*>(std::malloc(size + kHeader));
  if (block == nullptr) throw std::bad_alloc();
  std::memcpy(block, &size, sizeof size);
  if (scopes > 0) {
    held_bytes += static_cast<int64_t>(size);
    most_bytes = std::max(most_bytes, held_bytes);
  }
  return block + kHeader;
}

void Free(void* memory) {
  if (memory == nullptr) return;
  std::byte* const block = static_cast<std::byte*>(memory) - kHeader;
  std::size_t size;
  std::memcpy(&size, block, sizeof size);
  if (scopes > 0) held_bytes -= static_cast<int64_t>(size);
  std::free(block);
}

}  // namespace

CountedScope::CountedScope() { ++scopes; }
CountedScope::~CountedScope() { --scopes; }
int64_t CountedScope::held() { return held_bytes; }
int64_t CountedScope::most_held() { return most_bytes; }
void CountedScope::ForgetMost() { most_bytes = held_bytes; }

void* operator new(std::size_t size) { return Allocate(size); }
void* operator new[](std::size_t size) { return Allocate(size); }
void operator delete(void* memory) noexcept { Free(memory); }
void operator delete[](void* memory) noexcept { Free(memory); }
void operator delete(void* memory, std::size_t) noexcept { Free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { Free(memory); }
