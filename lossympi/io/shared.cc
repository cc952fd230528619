#include "lossympi/io/shared.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstring>
#include <ctime>
#include <system_error>

#include "lossympi/io/udp_socket.h"

namespace lossympi {
namespace {

static_assert(std::atomic<uint64_t>::is_always_lock_free);  // so it means the same to all processes
static_assert(std::atomic<uint32_t>::is_always_lock_free);

constexpr uint32_t kNone = 2;  // Board::newest
constexpr double kInterruptEvery = 0.1;
// A worker that writes nonsense into the bell can keep the server from hearing of others for as
// long.
constexpr double kLookEvery = 0.005;

size_t VectorBytes(int64_t dim) { return (static_cast<size_t>(dim) * sizeof(float) + 63) & ~63ul; }

// Waits, for `seconds` at most, until somebody wakes those who wait for `word`, unless it has
// another value than `seen`.
void Wait(const std::atomic<uint32_t>* word, uint32_t seen, double seconds) {
  const double whole = std::floor(seconds);
  const timespec timeout{static_cast<time_t>(whole), static_cast<long>((seconds - whole) * 1e9)};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void Wake(const std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Other processes write what is read here, or read what is written, and may do so at the same time.
void Copy(float* to, const float* from, int64_t dim) {
  if (to != from) std::memcpy(to, from, static_cast<size_t>(dim) * sizeof(float));
}

float* VectorOf(Board* board, int64_t dim, uint32_t which) {
  return reinterpret_cast<float*>(reinterpret_cast<char*>(board + 1) + which * VectorBytes(dim));
}

// Where a vector of a board may be written: who reads it meanwhile can see that it is not whole.
float* Begin(Board* board, int64_t dim, uint32_t which) {
  board->rounds[which].store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // who reads what follows sees the 0
  return VectorOf(board, dim, which);
}

void Ring(Board* board) {
  board->changes.fetch_add(1);
  Wake(&board->changes);
}

void Write(Board* board, int64_t dim, uint32_t which, uint64_t round, const float* params) {
  Copy(Begin(board, dim, which), params, dim);
  board->rounds[which].store(round + 1, std::memory_order_release);
  board->newest.store(which, std::memory_order_release);
  Ring(board);
}

// When a verb is to look up from its waiting.
class Clock {
 public:
  Clock(double timeout, const Interrupted& interrupt)
      : until_(begun_ + timeout), call_(interrupt) {}

  double elapsed() const { return Now() - begun_; }
  // How long to wait now, 0 if the time is up.
  double Next() {
    const double now = Now();
    if (now >= interrupt_at_) {
      interrupt_at_ = now + kInterruptEvery;
      call_();
    }
    return std::max(0.0, std::min(until_, interrupt_at_) - now);
  }
  bool is_up() const { return Now() >= until_; }

 private:
  const double begun_ = Now();
  const double until_;
  double interrupt_at_ = begun_ + kInterruptEvery;
  const Interrupted& call_;
};

}  // namespace

size_t MailboxBytes(int64_t dim) { return sizeof(Mailbox) + VectorBytes(dim); }
size_t BoardBytes(int64_t dim, int num_workers) {
  const size_t of_all = sizeof(Board) + 2 * VectorBytes(dim);
  return of_all + static_cast<size_t>(num_workers) * (sizeof(Board) + VectorBytes(dim));
}

Board* BoardOf(const Mapping& boards, int64_t dim, int row) {
  return reinterpret_cast<Board*>(boards.as<char>() + (row < 0 ? 0 : BoardBytes(dim, row)));
}

Mapping::Mapping(int file, size_t bytes, bool writeable) : bytes_(bytes) {
  data_ = mmap(nullptr, bytes, PROT_READ | (writeable ? PROT_WRITE : 0), MAP_SHARED, file, 0);
  if (data_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "cannot map shared memory");
  }
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

SharedServer::SharedServer(const std::vector<int>& mailboxes, int board, int bell, int64_t dim)
    : dim_(dim),
      board_(board, BoardBytes(dim, static_cast<int>(mailboxes.size())), true),
      bell_(bell, kBellBytes, true),
      seen_(mailboxes.size()) {
  for (int file : mailboxes) mailboxes_.emplace_back(file, MailboxBytes(dim), false);
  board_.as<Board>()->newest = kNone;  // an answer's is not looked at before there is one
}

Reason SharedServer::Collect(uint64_t round, float* stack, const Terms& terms, uint8_t* arrived,
                             double* settled, std::vector<Row>* rows,
                             const Interrupted& interrupt) {
  Clock clock(terms.timeout, interrupt);
  const std::vector<uint64_t> rounds(rows->size(), round);
  std::vector<double> live_settled;
  std::vector<size_t> absent;
  for (;;) {
    const uint32_t rings = bell_.as<Bell>()->rings.load();
    Look(rounds, stack, rows);
    live_settled.clear();
    absent.clear();
    for (size_t row = 0; row < rows->size(); ++row) {
      if ((*rows)[row].arrived && !arrived[row]) {
        arrived[row] = 1;
        settled[row] = clock.elapsed();
      }
      if (static_cast<const volatile uint8_t*>(terms.live)[row] == 0) continue;
      if (arrived[row]) {
        live_settled.push_back(settled[row]);
      } else {
        absent.push_back(row);
      }
    }
    const int num_arrived = static_cast<int>(live_settled.size());
    const int num_live = num_arrived + static_cast<int>(absent.size());
    const int most = MostOf(num_live, terms.f);
    int num_given_up = 0;
    double wait = std::min(clock.Next(), kLookEvery);
    if (terms.f > 0 && num_arrived >= most && num_arrived < num_live) {
      const double since = std::max(terms.free, TimeOfMost(&live_settled, most));
      const double waited = clock.elapsed() - since;
      for (const size_t row : absent) {
        const double left = terms.allowance[row] - waited;
        num_given_up += left <= 0;
        if (left > 0) wait = std::min(wait, left);
      }
    }
    const Reason reason =
        ClosedBy(num_live, num_arrived, num_arrived, terms.quorum, clock.is_up(), num_given_up);
    if (reason != Reason::kOpen) return reason;
    Wait(&bell_.as<Bell>()->rings, rings, wait);
  }
}

void SharedServer::Take(const std::vector<uint64_t>& rounds, float* stack, const uint8_t* taken,
                        double timeout, std::vector<Row>* rows, const Interrupted& interrupt) {
  if (board_.as<Board>()->takes.exchange(1) == 0) Ring(board_.as<Board>());
  Clock clock(timeout, interrupt);
  for (;;) {
    const uint32_t rings = bell_.as<Bell>()->rings.load();
    Look(rounds, stack, rows);
    for (size_t row = 0; row < rows->size(); ++row) {
      if ((*rows)[row].arrived && !taken[row]) return;
    }
    const double wait = std::min(clock.Next(), kLookEvery);
    if (clock.is_up()) return;
    Wait(&bell_.as<Bell>()->rings, rings, wait);
  }
}

void SharedServer::Reply(int row, uint64_t round, const float* params) {
  Write(answer(row), dim_, 0, round, params);
}

void SharedServer::Look(const std::vector<uint64_t>& rounds, float* stack, std::vector<Row>* rows) {
  for (size_t i = 0; i < mailboxes_.size(); ++i) {
    const Mailbox* mailbox = mailboxes_[i].as<Mailbox>();
    const uint32_t puts = mailbox->puts.load(std::memory_order_acquire);
    if (puts == seen_[i]) continue;
    seen_[i] = puts;
    const uint64_t of = mailbox->round.load(std::memory_order_relaxed);
    Row& row = (*rows)[i];
    if (of < rounds[i]) {
      ++row.late;
    } else if (of > rounds[i]) {
      ++row.early;
    } else if (row.arrived) {
      ++row.duplicate;
    } else {
      // Into memory of our own: a worker may go on writing, and the rule must see one vector.
      Copy(stack + static_cast<int64_t>(i) * dim_, reinterpret_cast<const float*>(mailbox + 1),
           dim_);
      row.arrived = true;
    }
  }
}

float* SharedServer::next_params() { return Begin(board_.as<Board>(), dim_, next_); }

void SharedServer::Publish(uint64_t round, const float* params) {
  Write(board_.as<Board>(), dim_, next_, round, params);
  next_ = 1 - next_;
}

void SharedServer::Leave() {
  for (int row = -1; row < static_cast<int>(mailboxes_.size()); ++row) {
    Board* board = BoardOf(board_, dim_, row);
    board->left = 1;
    Ring(board);
  }
}

SharedWorker::SharedWorker(int mailbox, int board, int bell, int64_t dim, int row)
    : dim_(dim),
      mailbox_(mailbox, MailboxBytes(dim), true),
      board_(board, BoardBytes(dim, row + 1), false),
      bell_(bell, kBellBytes, true),
      all_(BoardOf(board_, dim, -1)),
      answer_(BoardOf(board_, dim, row)) {}

float* SharedWorker::next_grad() const {
  return reinterpret_cast<float*>(mailbox_.as<Mailbox>() + 1);
}

void SharedWorker::Put(uint64_t round, const float* grad) {
  Mailbox* mailbox = mailbox_.as<Mailbox>();
  Copy(next_grad(), grad, dim_);
  mailbox->round.store(round, std::memory_order_relaxed);
  mailbox->puts.fetch_add(1, std::memory_order_release);
  bell_.as<Bell>()->rings.fetch_add(1);
  Wake(&bell_.as<Bell>()->rings);
}

SharedWorker::Model SharedWorker::Receive(uint64_t round, double timeout,
                                          const Interrupted& interrupt) {
  Clock clock(timeout, interrupt);
  for (;;) {
    const Board* board = all_->takes != 0 ? answer_ : all_;  // the server rings when it changes
    const uint32_t changes = board->changes.load();
    const uint32_t which = board->newest.load(std::memory_order_acquire);
    const uint64_t found = which < kNone ? board->rounds[which].load(std::memory_order_acquire) : 0;
    if (found > round) {
      return {found - 1, VectorOf(const_cast<Board*>(board), dim_, which), &board->rounds[which]};
    }
    const double left = clock.Next();
    if (board->left != 0 || (left == 0 && clock.is_up())) return {0, nullptr, nullptr};
    Wait(&board->changes, changes, left);
  }
}

bool SharedWorker::IsIntact(const Model& model) const {
  std::atomic_thread_fence(std::memory_order_acquire);  // what was read came before
  return model.stamp != nullptr && model.stamp->load(std::memory_order_relaxed) == model.round + 1;
}

bool SharedWorker::server_left() const { return all_->left != 0; }

}  // namespace lossympi
