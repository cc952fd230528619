// Feeds job_fuzz.cc with random bytes. A number gives them all, so that it is all that it takes to
// see a failure again. usage: NAME NUMBER_OF_JOBS FIRST_SEED
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "tests/native/job_simulation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

constexpr size_t kMostBytes = 1200;
unsigned long long seed;

void Say() { std::fprintf(stderr, "again: scripts/fuzz-lossympi jobs 1 %llu\n", seed); }
void SayAndAbort(int) {
  Say();
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

}  // namespace

// Of no use here; core/ may have been compiled for fuzz_main.cc.
extern "C" void __sanitizer_cov_trace_pc() {}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s NUMBER_OF_JOBS FIRST_SEED\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, SayAndAbort);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(Say);
  const auto number = std::strtoull(argv[1], nullptr, 10);
  seed = std::strtoull(argv[2], nullptr, 10);
  const std::clock_t begun = std::clock();
  for (uint64_t i = 0; i < number; ++i, ++seed) {
    simulation::Random random(seed);
    std::vector<uint8_t> bytes(16 + random.Next() % kMostBytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.Next() >> 32);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  const double took = static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC;
  std::printf("%llu jobs, %.0f a second of a core\n", static_cast<unsigned long long>(number),
              static_cast<double>(number) / took);
  return 0;
}
