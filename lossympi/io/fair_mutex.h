// A mutex that is handed over: whoever waits for it has it before who had it last has it again.
#ifndef LOSSYMPI_IO_FAIR_MUTEX_H_
#define LOSSYMPI_IO_FAIR_MUTEX_H_

#include <atomic>
#include <mutex>

namespace lossympi {

// std::mutex is not fair: who unlocks it and locks it again at once, as the receive thread does
// whose socket is never empty, nearly always wins against a thread that has to be woken.
class FairMutex {
 public:
  void lock() {
    ++num_waiting_;
    {
      // Held while waiting for the other: so who comes after the one that waits does not overtake.
      const std::lock_guard<std::mutex> turn(turn_);
      mutex_.lock();
    }
    --num_waiting_;
  }
  void unlock() { mutex_.unlock(); }
  // Whether somebody waits: a reason to unlock it soon.
  bool is_wanted() const { return num_waiting_.load(std::memory_order_relaxed) > 0; }

 private:
  std::mutex turn_, mutex_;
  std::atomic<int> num_waiting_{0};
};

}  // namespace lossympi

#endif  // LOSSYMPI_IO_FAIR_MUTEX_H_
