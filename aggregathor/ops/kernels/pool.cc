#include "aggregathor/ops/kernels/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <thread>

namespace aggregathor {
namespace {

// Less is not worth waking a thread for.
constexpr int64_t kLeastCycles = 100'000;
// Where a core is busy with something else, the others wait for one range at most.
constexpr int64_t kRangesPerThread = 8;

std::vector<int> CoresOfProcess() {
  cpu_set_t set;
  std::vector<int> cores;
  // It fails where there are more cores than a set has: the caller works alone then.
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

void BindTo(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // if it cannot be, it runs anywhere
}

}  // namespace

Pool& Pool::OfProcess() {
  static Pool* const pool = new Pool(CoresOfProcess());  // its threads run while statics are freed
  return *pool;
}

Pool::Pool(const std::vector<int>& cores) {
  if (cores.size() < 2) return;
  for (const int core : cores) helpers_.emplace_back().core = core;
  for (Helper& helper : helpers_) std::thread([this, &helper] { Serve(&helper); }).detach();
}

Parallel Pool::AsParallel() {
  return {[](void* pool, int64_t total, int64_t cycles_per_unit, Parallel::Body body, void* arg) {
            static_cast<Pool*>(pool)->Run(total, cycles_per_unit, body, arg);
          },
          this};
}

void Pool::Run(int64_t total, int64_t cycles_per_unit, Parallel::Body body, void* arg) {
  if (total <= 0) return;
  const double cycles = static_cast<double>(total) * static_cast<double>(cycles_per_unit);
  const double worth = std::min(cycles / kLeastCycles, static_cast<double>(helpers_.size()));
  const int64_t threads = static_cast<int64_t>(worth);
  if (threads < 2) return body(arg, 0, total);

  const std::lock_guard<std::mutex> turn(turn_);
  Work work{body, arg, total, std::max<int64_t>(1, total / (threads * kRangesPerThread))};
  std::unique_lock<std::mutex> lock(mutex_);
  const int core = sched_getcpu();
  int64_t called = 1;  // this thread
  // From the next core on, and around: neighbours share more.
  const auto here = std::find_if(helpers_.begin(), helpers_.end(),
                                 [core](const Helper& helper) { return helper.core == core; });
  for (size_t k = 1; k <= helpers_.size() && called < threads; ++k) {
    Helper& helper = helpers_[(here - helpers_.begin() + k) % helpers_.size()];
    if (helper.core == core) continue;
    helper.work = &work;
    helper.is_called.notify_one();
    ++called;
  }
  Take(&work, &lock);
  for (Helper& helper : helpers_) helper.work = nullptr;  // who has not begun is not waited for
  has_helped_.wait(lock, [&work] { return work.helpers == 0; });
}

void Pool::Serve(Helper* helper) {
  pthread_setname_np(pthread_self(), "agt-rule");
  BindTo(helper->core);
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    helper->is_called.wait(lock, [helper] { return helper->work != nullptr; });
    Work* const work = helper->work;
    helper->work = nullptr;
    ++work->helpers;
    Take(work, &lock);
    if (--work->helpers == 0) has_helped_.notify_one();
  }
}

void Pool::Take(Work* work, std::unique_lock<std::mutex>* lock) {
  while (work->next < work->total) {
    const int64_t begin = work->next, end = std::min(begin + work->size, work->total);
    work->next = end;
    lock->unlock();
    work->body(work->arg, begin, end);
    lock->lock();
  }
}

}  // namespace aggregathor
