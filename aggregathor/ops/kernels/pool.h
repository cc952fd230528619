// Threads for the rules where a server applies them outside of TensorFlow.
//
// Each is bound to a core. Left to itself, the kernel starts a thread on the core of whoever wakes
// it while a machine is mostly busy, as one full of workers is, although they all wait at this
// moment: two threads shared a core, and the other was idle.
#ifndef AGGREGATHOR_OPS_KERNELS_POOL_H_
#define AGGREGATHOR_OPS_KERNELS_POOL_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "aggregathor/ops/kernels/kernels.h"

namespace aggregathor {

class Pool {
 public:
  // The one of this process, for as long as it lives: a thread for each core that it may use.
  static Pool& OfProcess();

  explicit Pool(const std::vector<int>& cores);
  Pool(const Pool&) = delete;

  // What kernels take. The caller's thread works too; calls from several threads take turns.
  Parallel AsParallel();

 private:
  // A call: its ranges are taken one by one. All is guarded by mutex_.
  struct Work {
    const Parallel::Body body;
    void* const arg;
    const int64_t total, size;
    int64_t next = 0;
    int helpers = 0;  // at work
  };
  struct Helper {
    int core;
    Work* work = nullptr;  // to take part in; guarded by mutex_
    std::condition_variable is_called;
  };

  void Run(int64_t total, int64_t cycles_per_unit, Parallel::Body body, void* arg);
  void Serve(Helper* helper);
  // Takes ranges until none is left; `lock` is held before and after.
  static void Take(Work* work, std::unique_lock<std::mutex>* lock);

  std::deque<Helper> helpers_;  // one a core, or none; they never move
  std::mutex turn_;             // of a call
  std::mutex mutex_;
  std::condition_variable has_helped_;
};

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_POOL_H_
