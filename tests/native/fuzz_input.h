// What the fuzzers share: the bytes that they choose from, and the check that ends them.
#ifndef TESTS_NATIVE_FUZZ_INPUT_H_
#define TESTS_NATIVE_FUZZ_INPUT_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define CHECK(is_so)                                                           \
  do {                                                                         \
    if (!(is_so)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #is_so); \
      std::abort();                                                            \
    }                                                                          \
  } while (false)

// What the fuzzer has left; zeros after its end.
struct Input {
  const uint8_t* data;
  size_t size;
  uint8_t Byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
};

#endif  // TESTS_NATIVE_FUZZ_INPUT_H_
