// The pool's threads under calls of every size, from several threads at once: each unit of work is
// done once, and by the end of its call. usage: pool_test; exits with 0 if all went as it should.
// Built by scripts/sanitize-pool.
#include "aggregathor/ops/kernels/pool.h"

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using aggregathor::Parallel;
using aggregathor::Pool;

// Not atomic: where two threads have the same unit, or one is late, a sanitizer sees it.
void RunOnce(Parallel parallel, int64_t total, int64_t cycles_per_unit) {
  std::vector<int> done(total);
  parallel.run(
      parallel.pool, total, cycles_per_unit,
      [](void* arg, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++(*static_cast<std::vector<int>*>(arg))[i];
      },
      &done);
  for (const int times : done) {
    if (times == 1) continue;
    std::fprintf(stderr, "a unit of %lld was done %d times\n", static_cast<long long>(total),
                 times);
    std::exit(1);
  }
}

void RunAll(Parallel parallel) {
  for (int repeat = 0; repeat < 40; ++repeat) {
    for (const int64_t total : {0, 1, 2, 3, 7, 64, 1000, 30'011}) {
      for (const int64_t cycles : {0, 1, 100, 1'000'000}) RunOnce(parallel, total, cycles);
    }
  }
}

}  // namespace

int main() {
  // Of no core, of one, of two, of more than there are; a core that is not there binds to nothing.
  for (const std::vector<int>& cores :
       {std::vector<int>{}, {0}, {0, 1}, {0, 1, 0, 1, 0, 1}, {0, 1000}}) {
    const Parallel parallel = (new Pool(cores))->AsParallel();  // its threads never end
    RunAll(parallel);
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) callers.emplace_back(RunAll, parallel);
    for (std::thread& caller : callers) caller.join();
  }
  RunAll(Pool::OfProcess().AsParallel());
  std::puts("nothing wrong");
  std::fflush(stdout);
  std::_Exit(0);  // while the pools' threads wait
}
