// The floating-point mode of the kernels: IEEE 754's own, whatever thread they run on.
#ifndef AGGREGATHOR_OPS_KERNELS_FLOAT_MODE_H_
#define AGGREGATHOR_OPS_KERNELS_FLOAT_MODE_H_

#include <cstdint>

namespace aggregathor {

// While it lives, this thread keeps subnormal numbers and rounds to nearest.
//
// TensorFlow's threads take subnormal inputs for 0 and give 0 for subnormal results, and so does
// the caller's thread while it runs an op eagerly; a thread of Python's, of our pool or of a link
// does not. A rule that took over the mode would give other bits on a server than in a simulation,
// and 0 where all honest values are subnormal.
//
// The members are inlined everywhere, and are single instructions without a vector encoding: no
// copy for another instruction set can take their place (isa.h).
class IeeeMode {
 public:
  [[gnu::always_inline]] IeeeMode() : before_(Get()) { Set(kIeee); }
  [[gnu::always_inline]] ~IeeeMode() { Set(before_); }
  IeeeMode(const IeeeMode&) = delete;

 private:
  // Both are volatile and name memory, so that no load or store of data moves past them.
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kIeee = 0x1f80;  // MXCSR after a reset: exceptions masked, no FTZ, no DAZ
  [[gnu::always_inline]] static inline Word Get() {
    Word word;
    asm volatile("stmxcsr %0" : "=m"(word)::"memory");
    return word;
  }
  [[gnu::always_inline]] static inline void Set(Word word) {
    asm volatile("ldmxcsr %0" ::"m"(word) : "memory");
  }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kIeee = 0;  // FPCR: no traps, no FZ, no FZ16
  [[gnu::always_inline]] static inline Word Get() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word)::"memory");
    return word;
  }
  [[gnu::always_inline]] static inline void Set(Word word) {
    asm volatile("msr fpcr, %0" ::"r"(word) : "memory");
  }
#else
  using Word = int;  // TensorFlow changes the mode on no other processor
  static constexpr Word kIeee = 0;
  static Word Get() { return 0; }
  static void Set(Word) {}
#endif

  const Word before_;
};

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_FLOAT_MODE_H_
