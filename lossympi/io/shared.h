// What the ranks of one host have in place of a network: memory. WIRE.md has the layout, and who
// may write what.
#ifndef LOSSYMPI_IO_SHARED_H_
#define LOSSYMPI_IO_SHARED_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "lossympi/core/closing.h"

namespace lossympi {

// A worker's gradient; the floats follow. The worker writes.
struct alignas(64) Mailbox {
  std::atomic<uint64_t> round;  // of the gradient
  std::atomic<uint32_t> puts;   // how many there have been; the worker adds 1 when one is whole
};

// The parameters: two vectors follow, each at a multiple of 64 bytes, which take turns. The server
// writes; workers cannot. Then the same for each worker, with one vector: what answers it alone.
struct alignas(64) Board {
  std::atomic<uint64_t> rounds[2];  // of the vectors, plus 1; 0 while one is being written
  std::atomic<uint32_t> changes;    // of all that is here: workers wait for it
  std::atomic<uint32_t> newest;     // 0 or 1; 2 before there is any
  std::atomic<uint32_t> left;       // 1 once the server has gone
  std::atomic<uint32_t> takes;      // 1 once workers are answered one by one
};

// What workers wake the server by: each adds 1. All write, so it may hold anything.
struct alignas(64) Bell {
  std::atomic<uint32_t> rings;
};

// Bytes of each, with vectors of d floats; of the boards, those of all and of this many workers.
size_t MailboxBytes(int64_t dim);
size_t BoardBytes(int64_t dim, int num_workers);
constexpr size_t kBellBytes = sizeof(Bell);

// A shared file in this process's memory; the file may be closed meanwhile.
class Mapping {
 public:
  // Throws std::system_error.
  Mapping(int file, size_t bytes, bool writeable);
  ~Mapping();
  Mapping(Mapping&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  size_t bytes_;
};

// In such memory: the board for all, -1, or a worker's.
Board* BoardOf(const Mapping& boards, int64_t dim, int row);

// Called about ten times a second while a verb waits; it may throw to end the wait.
using Interrupted = std::function<void()>;

class SharedServer {
 public:
  SharedServer(const std::vector<int>& mailboxes, int board, int bell, int64_t dim);

  // What was found in the mailboxes, by row.
  struct Row {
    bool arrived = false;
    uint32_t late = 0, early = 0, duplicate = 0;
  };

  // Whom a round waits for. All arrays have n values.
  struct Terms {
    const uint8_t* live;  // 1 or 0, which may change meanwhile
    int quorum;
    double timeout;  // s
    // How many of those who live are waited for no longer than until `free` s have passed, and then
    // as long as they are allowed, in s, once all others have come; 0: none.
    int f;
    double free;
    const double* allowance;
  };

  // Copies into `stack`, [n, d], what workers put into their mailboxes for `round`, until `quorum`
  // of those that live have, the others have used up what they are allowed, or the time is up.
  // Tells of each row at once: has it arrived (1 or 0), and how many seconds after the call (else
  // left as it is).
  Reason Collect(uint64_t round, float* stack, const Terms& terms, uint8_t* arrived,
                 double* settled, std::vector<Row>* rows, const Interrupted& interrupt);

  // Where the next parameters may be written before `Publish`, which then need not copy them.
  float* next_params();
  void Publish(uint64_t round, const float* params);

  // The same worker by worker. Copies into `stack` what each has put into its mailbox for its own
  // round, until one that has `arrived` was not `taken` (1 or 0, as before), or the time is up.
  void Take(const std::vector<uint64_t>& rounds, float* stack, const uint8_t* taken, double timeout,
            std::vector<Row>* rows, const Interrupted& interrupt);
  void Reply(int row, uint64_t round, const float* params);

  // Tells the workers that it goes.
  void Leave();

 private:
  void Look(const std::vector<uint64_t>& rounds, float* stack, std::vector<Row>* rows);
  Board* answer(int row) const { return BoardOf(board_, dim_, row); }

  const int64_t dim_;
  std::vector<Mapping> mailboxes_;
  Mapping board_, bell_;
  std::vector<uint32_t> seen_;  // of each mailbox, how many puts
  uint32_t next_ = 0;           // which vector is written next
};

class SharedWorker {
 public:
  SharedWorker(int mailbox, int board, int bell, int64_t dim, int row);

  // Where the next gradient may be written before `Put`, which then need not copy it.
  float* next_grad() const;
  void Put(uint64_t round, const float* grad);

  struct Model {
    uint64_t round;
    const float* params;                 // null: there was none in time
    const std::atomic<uint64_t>* stamp;  // of its memory
  };
  // Waits for parameters of `round` or later, until the server leaves or `timeout` s have passed.
  Model Receive(uint64_t round, double timeout, const Interrupted& interrupt);
  // Whether a model that was received is still what it was. The server waits for nobody: it writes
  // a vector again when another has been published since.
  bool IsIntact(const Model& model) const;
  bool server_left() const;

 private:
  const int64_t dim_;
  Mapping mailbox_, board_, bell_;
  const Board* const all_;     // what is for all workers
  const Board* const answer_;  // and for this one
};

}  // namespace lossympi

#endif  // LOSSYMPI_IO_SHARED_H_
