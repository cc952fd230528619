// Counts the memory that operator new gives out within a scope. counted_memory.cc replaces it.
#ifndef TESTS_NATIVE_COUNTED_MEMORY_H_
#define TESTS_NATIVE_COUNTED_MEMORY_H_

#include <cstdint>

// While one lives, what is allocated and freed is counted. Free in a scope what was allocated in
// one. For one thread.
class CountedScope {
 public:
  CountedScope();
  ~CountedScope();
  CountedScope(const CountedScope&) = delete;
  CountedScope& operator=(const CountedScope&) = delete;

  static int64_t held();       // bytes, allocated less freed
  static int64_t most_held();  // since ForgetMost
  static void ForgetMost();
};

#endif  // TESTS_NATIVE_COUNTED_MEMORY_H_
