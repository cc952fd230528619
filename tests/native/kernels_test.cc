// The kernels without TensorFlow, for sanitizers. usage: kernels_test; prints the instruction set
// and what failed, exits with the number of failures.
#include "tests/native/oracles.h"

namespace {

template <typename T>
void TestAll(std::mt19937* rng) {
  for (const int64_t n : {1, 2, 3, 7, 11, 19, 31, 32, 33, 40, 64, 65, 100}) {
    for (const int64_t d : {1, 3, 63, 64, 65, 130, 1023, 1025, 2051}) {
      if (n > 40 && d > 130) continue;
      oracles::TestShape(aggregathor::KernelsFor<T>(), n, d, rng);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 rng(1);
  TestAll<float>(&rng);
  TestAll<double>(&rng);
  std::printf("%s: %d failures\n", aggregathor::InstructionSet(), oracles::failures);
  return std::min(oracles::failures, 100);
}
