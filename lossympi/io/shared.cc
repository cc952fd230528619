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
size_t BoardBytes(int64_t dim) { return sizeof(Board) + 2 * VectorBytes(dim); }

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
      board_(board, BoardBytes(dim), true),
      bell_(bell, kBellBytes, true),
      seen_(mailboxes.size()) {
  for (int file : mailboxes) mailboxes_.emplace_back(file, MailboxBytes(dim), false);
  board_.as<Board>()->newest = kNone;
}

Reason SharedServer::Collect(uint64_t round, float* stack, const Terms& terms, uint8_t* arrived,
                             double* settled, std::vector<Row>* rows,
                             const Interrupted& interrupt) {
  Clock clock(terms.timeout, interrupt);
  std::vector<double> live_settled;
  std::vector<size_t> absent;
  for (;;) {
    const uint32_t rings = bell_.as<Bell>()->rings.load();
    Look(round, stack, rows);
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

void SharedServer::Look(uint64_t round, float* stack, std::vector<Row>* rows) {
  for (size_t i = 0; i < mailboxes_.size(); ++i) {
    const Mailbox* mailbox = mailboxes_[i].as<Mailbox>();
    const uint32_t puts = mailbox->puts.load(std::memory_order_acquire);
    if (puts == seen_[i]) continue;
    seen_[i] = puts;
    const uint64_t of = mailbox->round.load(std::memory_order_relaxed);
    Row& row = (*rows)[i];
    if (of < round) {
      ++row.late;
    } else if (of > round) {
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

float* SharedServer::vector(uint32_t which) const {
  return reinterpret_cast<float*>(board_.as<char>() + sizeof(Board) + which * VectorBytes(dim_));
}

float* SharedServer::next_params() {
  board_.as<Board>()->rounds[next_].store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // who reads what follows sees the 0
  return vector(next_);
}

void SharedServer::Publish(uint64_t round, const float* params) {
  Copy(next_params(), params, dim_);
  Board* board = board_.as<Board>();
  board->rounds[next_].store(round + 1, std::memory_order_release);
  board->newest.store(next_, std::memory_order_release);
  next_ = 1 - next_;
  Ring();
}

void SharedServer::Leave() {
  board_.as<Board>()->left = 1;
  Ring();
}

void SharedServer::Ring() {
  board_.as<Board>()->changes.fetch_add(1);
  Wake(&board_.as<Board>()->changes);
}

SharedWorker::SharedWorker(int mailbox, int board, int bell, int64_t dim)
    : dim_(dim),
      mailbox_(mailbox, MailboxBytes(dim), true),
      board_(board, BoardBytes(dim), false),
      bell_(bell, kBellBytes, true) {}

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
  const Board* board = board_.as<Board>();
  Clock clock(timeout, interrupt);
  for (;;) {
    const uint32_t changes = board->changes.load();
    const uint32_t which = board->newest.load(std::memory_order_acquire);
    const uint64_t found = which < kNone ? board->rounds[which].load(std::memory_order_acquire) : 0;
    if (found > round) {
      const char* vectors = board_.as<char>() + sizeof(Board);
      return {found - 1, reinterpret_cast<const float*>(vectors + which * VectorBytes(dim_)),
              which};
    }
    const double left = clock.Next();
    if (board->left != 0 || (left == 0 && clock.is_up())) return {0, nullptr, 0};
    Wait(&board->changes, changes, left);
  }
}

bool SharedWorker::IsIntact(const Model& model) const {
  std::atomic_thread_fence(std::memory_order_acquire);  // what was read came before
  return board_.as<Board>()->rounds[model.which].load(std::memory_order_relaxed) == model.round + 1;
}

bool SharedWorker::server_left() const { return board_.as<Board>()->left != 0; }

}  // namespace lossympi
