// lossympi._core: the data plane for Python. endpoint.py tells what an Endpoint does; the rest is
// the core, for the tests that compare it with its twin in plane/.
#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "lossympi/core/assembler.h"
#include "lossympi/core/close_rule.h"
#include "lossympi/core/drop.h"
#include "lossympi/core/outbox.h"
#include "lossympi/core/pacer.h"
#include "lossympi/core/packet.h"
#include "lossympi/io/cipher.h"
#include "lossympi/io/endpoint.h"
#include "lossympi/io/shared.h"
#include "lossympi/io/worker_rounds.h"

namespace py = pybind11;

namespace lossympi {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool>;

Wire WireOf(const std::string& name) {
  if (name == "float32") return Wire::kFloat32;
  if (name == "float16") return Wire::kFloat16;
  if (name == "bfloat16") return Wire::kBfloat16;
  throw std::invalid_argument("wire must be one of float32, float16, bfloat16, got '" + name +
                              "'. Pass one.");
}

const char* NameOf(CloseRule::Reason reason) {
  constexpr const char* kNames[] = {"open", "complete", "early", "deadline"};
  return kNames[static_cast<int>(reason)];
}

// Of exactly this shape and dtype, in C order: a copy would not be what the caller holds.
const float* DataOf(const char* name, const py::array& array, const py::tuple& shape) {
  py::module_::import("lossympi.link")
      .attr("check_array")(name, array, py::dtype::of<float>(), shape);
  if ((array.flags() & py::array::c_style) == 0) {
    throw std::invalid_argument(std::string(name) +
                                " must be in C order. Pass it through np.ascontiguousarray.");
  }
  return static_cast<const float*>(array.data());
}

float* WriteableDataOf(const char* name, const py::array& array, const py::tuple& shape) {
  const float* data = DataOf(name, array, shape);
  if (!array.writeable()) {
    throw std::invalid_argument(std::string(name) +
                                " must be writeable. Allocate it with np.empty.");
  }
  return const_cast<float*>(data);
}

Bools BoolsOf(const std::vector<uint8_t>& bytes, std::vector<py::ssize_t> shape) {
  Bools array(std::move(shape));
  static_assert(sizeof(bool) == 1);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(array.mutable_data()));
  return array;
}

void CheckSeconds(const char* name, double seconds) {
  if (seconds >= 0) return;
  throw std::invalid_argument(std::string(name) + " must be at least 0 seconds, got " +
                              std::to_string(seconds) + ". Pass a longer time.");
}

void CheckMaxLoss(double max_loss) {
  if (max_loss >= 0 && max_loss <= 1) return;
  throw std::invalid_argument("max_loss must be in 0..1, got " + std::to_string(max_loss) +
                              ". Pass a share.");
}

// An int in low..high, whatever its size is.
uint64_t NumberIn(const char* name, const py::object& value, uint64_t low, uint64_t high) {
  if (py::int_(low) <= value && value <= py::int_(high)) return py::int_(value).cast<uint64_t>();
  throw std::invalid_argument(std::string(name) + " must be in " + std::to_string(low) + ".." +
                              std::to_string(high) + ", got " + py::str(value).cast<std::string>() +
                              ". Change it.");
}
uint32_t RateOf(const py::object& kbps) {
  return static_cast<uint32_t>(NumberIn("rate_kbps", kbps, 1, 0xffffffff));
}
uint64_t RoundOf(const py::object& round) { return NumberIn("round", round, 1, UINT64_MAX); }

// Runs f, which takes Python's lock. Until Python 3.14 whoever does so while the interpreter ends
// has its thread ended, by an unwinding that pybind11's destructors cannot take part in: they would
// end the process. So the thread waits for that end here, as it does from 3.14 on.
template <typename F>
void TakingGil(F f) {
  try {
    f();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
}

template <typename F>
auto WithoutGil(F f) {
  std::exception_ptr error;
  decltype(f()) result{};
  PyThreadState* const state = PyEval_SaveThread();
  try {
    result = f();
  } catch (...) {
    error = std::current_exception();
  }
  TakingGil([state] { PyEval_RestoreThread(state); });
  if (error) std::rethrow_exception(error);
  return result;
}

// Lets Ctrl-C end a wait.
void CheckSignals() {
  std::optional<py::gil_scoped_acquire> gil;
  TakingGil([&gil] { gil.emplace(); });
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

ClosePolicy PolicyOf(const py::object& policy, size_t num_rows) {
  ClosePolicy p{policy.attr("deadline_s").cast<double>(),
                policy.attr("grace_s").cast<double>(),
                policy.attr("quiet_s").cast<double>(),
                policy.attr("max_loss").cast<double>(),
                static_cast<int>(NumberIn("quorum", policy.attr("quorum"), 1, INT_MAX)),
                policy.attr("live_n").cast<std::vector<bool>>()};
  CheckSeconds("deadline_s", p.deadline);
  CheckSeconds("grace_s", p.grace);
  CheckSeconds("quiet_s", p.quiet);
  CheckMaxLoss(p.max_loss);
  if (p.live.size() != num_rows) {
    throw std::invalid_argument("live_n must have " + std::to_string(num_rows) + " values, got " +
                                std::to_string(p.live.size()) + ". Pass one for each row.");
  }
  return p;
}

Setup SetupOf(const py::object& s) {
  const auto number = [&s](const char* name, uint64_t low, uint64_t high) {
    return NumberIn(name, s.attr(name), low, high);
  };
  Setup setup;
  setup.num_workers = static_cast<int>(number("num_workers", 1, 65535));
  setup.rank = static_cast<int>(number("rank", 0, setup.num_workers));
  setup.address = s.attr("address").cast<std::string>();
  setup.session = static_cast<uint32_t>(number("session", 0, 0xffffffff));
  // So that c fits its 32 bits whatever the MTU.
  setup.dim = static_cast<int64_t>(number("dim", 1, uint64_t{1} << 35));
  setup.wire = WireOf(s.attr("wire").cast<std::string>());
  setup.mtu = static_cast<int64_t>(number("mtu", 28 + 48 + 64, 65535));
  setup.suite = SuiteOf(s.attr("cipher").cast<std::string>());
  setup.drop = s.attr("drop").cast<double>();
  if (!(setup.drop >= 0 && setup.drop <= 1)) {
    throw std::invalid_argument("drop must be in 0..1, got " + std::to_string(setup.drop) +
                                ". Pass a probability.");
  }
  setup.drop_seed = (py::int_(s.attr("drop_seed")) & py::int_(UINT64_MAX)).cast<uint64_t>();
  setup.receive_buffer = static_cast<int>(number("receive_buffer", 1, INT_MAX));
  return setup;
}

class PyEndpoint {
 public:
  explicit PyEndpoint(const py::object& setup) : endpoint_(SetupOf(setup)) {}

  Endpoint& get() { return endpoint_; }
  const Setup& setup() const { return endpoint_.setup(); }

  // Arguments are judged before the state: a wrong one is wrong in any.
  py::object Collect(const py::object& round, const py::array& stack, const py::object& policy,
                     const py::object& on_whole) {
    CheckRole("collect", true);
    const int n = setup().num_workers;
    float* data = WriteableDataOf("stack_nd", stack, py::make_tuple(n, setup().dim));
    const ClosePolicy p = PolicyOf(policy, n);
    const uint32_t rate = RateOf(policy.attr("rate_kbps"));
    const uint64_t r = RoundOf(round);
    Endpoint::OnWhole tell;
    if (!on_whole.is_none()) {
      tell = [&on_whole](const std::vector<uint32_t>& seqs) {
        std::optional<py::gil_scoped_acquire> gil;
        TakingGil([&gil] { gil.emplace(); });
        on_whole(py::array_t<uint32_t>(static_cast<py::ssize_t>(seqs.size()), seqs.data()));
      };
    }
    const Closed closed =
        WithoutGil([&] { return endpoint_.Collect(r, data, p, rate, tell, CheckSignals); });
    const auto c = static_cast<py::ssize_t>(closed.arrived.size()) / n;
    const py::array_t<double> settled(n, closed.settled.data());
    return py::module_::import("lossympi.endpoint")
        .attr("Closed")(NameOf(closed.reason), closed.elapsed, BoolsOf(closed.arrived, {n, c}),
                        BoolsOf(closed.heard, {n}), settled);
  }

  bool Send(const py::object& round, const py::array& grad, double max_loss, double timeout) {
    CheckRole("send", false);
    const float* data = DataOf("grad_d", grad, py::make_tuple(setup().dim));
    CheckMaxLoss(max_loss);
    CheckSeconds("timeout_s", timeout);
    const uint64_t r = RoundOf(round);
    return WithoutGil([&] { return endpoint_.Send(r, data, max_loss, timeout, CheckSignals); });
  }

  Bools Broadcast(const py::object& round, const py::array& params, const std::vector<bool>& to,
                  const py::object& rate_kbps, double timeout, double silence) {
    CheckRole("broadcast", true);
    const int n = setup().num_workers;
    const float* data = DataOf("params_d", params, py::make_tuple(setup().dim));
    if (to.size() != static_cast<size_t>(n)) {
      throw std::invalid_argument("to_n must have " + std::to_string(n) + " values, got " +
                                  std::to_string(to.size()) + ". Pass one for each row.");
    }
    const uint32_t rate = RateOf(rate_kbps);
    CheckSeconds("timeout_s", timeout);
    CheckSeconds("silence_s", silence);
    const uint64_t r = RoundOf(round);
    const std::vector<uint8_t> done = WithoutGil(
        [&] { return endpoint_.Broadcast(r, data, to, rate, timeout, silence, CheckSignals); });
    return BoolsOf(done, {n});
  }

  // `self` is kept alive by the array, whose memory is the endpoint's.
  static py::object Receive(const py::object& self, const py::object& round, double timeout) {
    auto& endpoint = self.cast<PyEndpoint&>();
    endpoint.CheckRole("receive", false);
    CheckSeconds("timeout_s", timeout);
    const uint64_t r = RoundOf(round);
    const Endpoint::Model model =
        WithoutGil([&] { return endpoint.endpoint_.Receive(r, timeout, CheckSignals); });
    if (model.round == 0) return py::none();
    Floats params(endpoint.setup().dim, model.params, self);
    params.attr("setflags")(py::arg("write") = false);
    return py::make_tuple(model.round, params);
  }

  py::object Probe(double timeout) {
    CheckSeconds("timeout_s", timeout);
    return py::cast(WithoutGil([&] { return endpoint_.Probe(timeout, CheckSignals); }));
  }

  bool ServerLeft() {
    CheckRole("server_left", false);
    return endpoint_.server_left();
  }

  void Close() {
    WithoutGil([&] {
      endpoint_.Close();
      return true;
    });
  }

  py::dict Counters() {
    const Endpoint::Report report = endpoint_.Counters();
    const auto dict_of = [](const Counts& counts) {
      py::dict d;
      for (int v = 0; v < kNumVerdicts; ++v)
        d[lossympi::NameOf(static_cast<Verdict>(v))] = counts[v];
      return d;
    };
    py::dict all;
    for (const auto& [rank, counts] : report.of_peer) all[py::int_(rank)] = dict_of(counts);
    py::dict nobody = dict_of(report.of_nobody);
    nobody["dropped"] = report.dropped;
    nobody["overflow"] = report.overflow;
    all[py::int_(-1)] = nobody;
    return all;
  }

 private:
  void CheckRole(const char* verb, bool server) const {
    if ((setup().rank == 0) == server) return;
    throw std::invalid_argument(std::string(verb) + " is for " +
                                (server ? "the server" : "a worker") + "; this is rank " +
                                std::to_string(setup().rank) + ".");
  }

  Endpoint endpoint_;
};

class PySharedServer {
 public:
  PySharedServer(const std::vector<int>& mailboxes, int board, int bell, int64_t dim)
      : num_rows_(static_cast<int>(mailboxes.size())),
        dim_(dim),
        server_(mailboxes, board, bell, dim) {}

  // Reads `live_n` and writes `arrived_n` and `settled_n` while it runs.
  py::tuple Collect(const py::object& round, const py::array& stack, const Bools& live_n,
                    int quorum, double timeout, Bools arrived_n, py::array_t<double> settled_n) {
    float* data = WriteableDataOf("stack_nd", stack, py::make_tuple(num_rows_, dim_));
    if (live_n.size() != num_rows_ || arrived_n.size() != num_rows_ ||
        settled_n.size() != num_rows_) {
      throw std::invalid_argument("live_n, arrived_n and settled_n must have a value for each row");
    }
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    std::vector<SharedServer::Row> rows(num_rows_);
    const auto* live = reinterpret_cast<const uint8_t*>(live_n.data());
    auto* arrived = reinterpret_cast<uint8_t*>(arrived_n.mutable_data());
    double* settled = settled_n.mutable_data();
    const SharedServer::Reason reason = WithoutGil([&] {
      return server_.Collect(r, data, live, quorum, timeout, arrived, settled, &rows, CheckSignals);
    });
    constexpr const char* kNames[] = {"complete", "early", "deadline"};
    py::list counts;
    for (const auto& row : rows) counts.append(py::make_tuple(row.late, row.early, row.duplicate));
    return py::make_tuple(kNames[static_cast<int>(reason)], counts);
  }

  void Publish(const py::object& round, const py::array& params) {
    const float* data = DataOf("params_d", params, py::make_tuple(dim_));
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    WithoutGil([&] {
      server_.Publish(r, data);
      return true;
    });
  }

  void Leave() { server_.Leave(); }

  // For C: where the next parameters may be written.
  static float* NextParams(void* self) {
    return static_cast<PySharedServer*>(self)->server_.next_params();
  }

 private:
  const int num_rows_;
  const int64_t dim_;
  SharedServer server_;
};

class PySharedWorker {
 public:
  PySharedWorker(int mailbox, int board, int bell, int64_t dim)
      : dim_(dim), worker_(mailbox, board, bell, dim) {}

  SharedWorker& get() { return worker_; }

  void Put(const py::object& round, const py::array& grad) {
    const float* data = DataOf("grad_d", grad, py::make_tuple(dim_));
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    WithoutGil([&] {
      worker_.Put(r, data);
      return true;
    });
  }

  // Copies the parameters; their round, or None.
  py::object Receive(const py::object& round, const py::array& params, double timeout) {
    float* to = WriteableDataOf("params_d", params, py::make_tuple(dim_));
    CheckSeconds("timeout_s", timeout);
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    const SharedWorker::Model model = WithoutGil([&] {
      for (;;) {
        const SharedWorker::Model found = worker_.Receive(r, timeout, CheckSignals);
        if (found.params == nullptr) return found;
        std::copy(found.params, found.params + dim_, to);
        if (worker_.IsIntact(found)) return found;
      }
    });
    return model.params == nullptr ? py::none() : py::object(py::int_(model.round));
  }

 private:
  const int64_t dim_;
  SharedWorker worker_;
};

class PyWorkerRounds {
 public:
  // The end of the link is kept alive. What `idle` raises ends the round.
  PyWorkerRounds(py::object end, double max_loss, py::object idle)
      : kept_(std::move(end)), idle_(std::move(idle)) {
    if (py::isinstance<PySharedWorker>(kept_)) {
      end_ = std::make_unique<SharedEnd>(&kept_.cast<PySharedWorker&>().get());
    } else {
      end_ = std::make_unique<UdpEnd>(&kept_.cast<PyEndpoint&>().get(), max_loss);
    }
    rounds_ = std::make_unique<WorkerRounds>(end_.get(), [this](auto... of) { return Ask(of...); });
  }
  WorkerRounds& get() { return *rounds_; }
  bool sends_parts() const { return !py::isinstance<PySharedWorker>(kept_); }

 private:
  int Ask(bool is_sending, bool has_left, double waited, char* message) {
    int code = 0;
    TakingGil([&] {
      const PyGILState_STATE state = PyGILState_Ensure();
      PyObject* const result = PyObject_CallFunction(
          idle_.ptr(), "NNd", PyBool_FromLong(is_sending), PyBool_FromLong(has_left), waited);
      if (result == nullptr) {
        code = kUnknown;
        Tell(message);
      }
      Py_XDECREF(result);
      PyGILState_Release(state);
    });
    return code;
  }

  // Writes the exception at hand, and clears it.
  static void Tell(char* message) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject* const text = value ? PyUnicode_FromFormat("%s: %S", Py_TYPE(value)->tp_name, value)
                                 : PyUnicode_FromString("it was ended");
    const char* words = text ? PyUnicode_AsUTF8(text) : nullptr;
    if (words == nullptr) words = "it was ended";
    size_t bytes = std::min(std::strlen(words), size_t{kMessageBytes - 1});
    if (words[bytes] != 0) {
      while (bytes > 0 && (words[bytes] & 0xC0) == 0x80) --bytes;  // no half of a character
    }
    std::memcpy(message, words, bytes);
    message[bytes] = 0;
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear();
  }

  static constexpr int kUnknown = 2;  // absl::StatusCode

  py::object kept_, idle_;
  std::unique_ptr<WorkerEnd> end_;
  std::unique_ptr<WorkerRounds> rounds_;
};

template <typename T>
uintptr_t AddressOf(T thing) {
  return reinterpret_cast<uintptr_t>(thing);
}

// The assembler with the arrays that it writes to kept alive.
class PyAssembler {
 public:
  PyAssembler(int64_t dim, int num_rows, int64_t floats, const std::string& wire)
      : assembler_(AtLeast1(num_rows), Cut{AtLeast1(dim), AtLeast1(floats), WireOf(wire)}),
        num_rows_(num_rows) {}

  void Open(uint64_t round, const py::array& rows) {
    if (round <= assembler_.newest_round()) throw std::invalid_argument("rounds must increase");
    const py::tuple shape = py::make_tuple(num_rows_, assembler_.cut().dim);
    assembler_.Open(round, WriteableDataOf("rows", rows, shape));
    rows_ = rows;
  }
  void Close() {
    if (assembler_.is_open()) assembler_.Close(assembler_.round());
    rows_ = py::none();
  }
  std::string Accept(int row, uint64_t round, uint32_t seq, uint32_t total,
                     const std::string& payload) {
    const Header header{Kind::kData, 0, 0, round, seq, total, 0};
    return lossympi::NameOf(assembler_.Accept(
        row, header, reinterpret_cast<const uint8_t*>(payload.data()), payload.size()));
  }
  uint32_t Missing(int row) const { return assembler_.missing(Row(row)); }
  const std::vector<uint32_t>& Whole() const { return assembler_.whole(); }
  Bools Arrived(int row) const {
    const uint8_t* a = assembler_.arrived(Row(row));
    const auto c = static_cast<py::ssize_t>(assembler_.cut().NumDatagrams());
    return BoolsOf(std::vector<uint8_t>(a, a + c), {c});
  }

 private:
  template <typename T>
  static T AtLeast1(T number) {
    if (number < 1) throw std::invalid_argument("numbers of rows and floats are at least 1");
    return number;
  }
  int Row(int row) const {
    if (row < 0 || row >= num_rows_) throw py::index_error("no such row");
    return row;
  }
  Assembler assembler_;
  int num_rows_;
  py::object rows_;
};

PYBIND11_MODULE(_core, m) {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const std::system_error& e) {
      errno = e.code().value();
      PyErr_SetObject(PyExc_OSError, py::make_tuple(e.code().value(), e.what()).ptr());
    }
  });

  m.def("has_aes256gcm", &HasAes256Gcm);
  m.def("key_pair", [] {
    const KeyPair pair = NewKeyPair();
    return py::make_tuple(py::bytes(pair.public_key), py::bytes(pair.secret_key));
  });
  m.def(
      "session_keys",
      [](const py::bytes& secret_key, const py::bytes& public_key, const py::bytes& peer_public_key,
         bool server) {
        const SessionKeys keys = AgreeOnKeys({public_key, secret_key}, peer_public_key, server);
        return py::make_tuple(py::bytes(keys.receive_key), py::bytes(keys.send_key));
      },
      py::arg("secret_key"), py::arg("public_key"), py::arg("peer_public_key"), py::arg("server"));
  m.def("pack", [](int kind, uint16_t rank, uint32_t session, uint64_t round, uint32_t seq,
                   uint32_t total, uint64_t counter) {
    uint8_t to[kHeaderBytes];
    Pack({static_cast<Kind>(kind), rank, session, round, seq, total, counter}, to);
    return py::bytes(reinterpret_cast<char*>(to), sizeof to);
  });
  m.def("unpack", [](const std::string& bytes) {
    if (bytes.size() < kHeaderBytes) throw std::invalid_argument("a header has 32 bytes");
    const Header h = Unpack(reinterpret_cast<const uint8_t*>(bytes.data()));
    return py::make_tuple(static_cast<int>(h.kind), h.rank, h.session, h.round, h.seq, h.total,
                          h.counter);
  });
  m.def("encode_floats", [](const Floats& floats, const std::string& wire) {
    const Wire w = WireOf(wire);
    std::string bytes(floats.size() * BytesOf(w), 0);
    Narrow(floats.data(), floats.size(), w, reinterpret_cast<uint8_t*>(bytes.data()));
    return py::bytes(bytes);
  });
  m.def("decode_floats", [](const std::string& bytes, const std::string& wire) {
    const Wire w = WireOf(wire);
    Floats floats(static_cast<py::ssize_t>(bytes.size() / BytesOf(w)));
    Widen(reinterpret_cast<const uint8_t*>(bytes.data()), floats.size(), w, floats.mutable_data());
    return floats;
  });
  m.def("nack_payloads", [](const Bools& missing, size_t most_bytes) {
    if (most_bytes < 1) throw std::invalid_argument("a NACK has at least 1 byte");
    std::vector<uint8_t> arrived(missing.size());
    for (size_t i = 0; i < arrived.size(); ++i) arrived[i] = !missing.data()[i];
    py::list list;
    for (const Nack& nack : NacksOf(arrived.data(), arrived.size(), most_bytes)) {
      const py::bytes bitmap(reinterpret_cast<const char*>(nack.bitmap.data()), nack.bitmap.size());
      list.append(py::make_tuple(nack.first, bitmap));
    }
    return list;
  });
  m.def("read_nack", [](uint32_t first, const std::string& bitmap, uint32_t total) -> py::object {
    std::vector<uint32_t> wanted;
    const bool sound = ReadNack(first, reinterpret_cast<const uint8_t*>(bitmap.data()),
                                bitmap.size(), total, [&](uint32_t s) { wanted.push_back(s); });
    return sound ? py::object(py::array_t<uint32_t>(wanted.size(), wanted.data())) : py::none();
  });
  m.def("tag", [](const std::string& cipher, const std::string& key, const std::string& bytes,
                  uint64_t counter) {
    const Key k(SuiteOf(cipher), key);
    std::string tag(k.tag_bytes(), 0);
    k.Tag(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), counter,
          reinterpret_cast<uint8_t*>(tag.data()));
    return py::bytes(tag);
  });
  m.def("drops", [](double share, uint64_t seed, uint64_t rank, size_t size) {
    Drop drop(share, seed, rank);
    std::vector<uint8_t> lost(size);
    for (auto& each : lost) each = drop.Next();
    return BoolsOf(lost, {static_cast<py::ssize_t>(size)});
  });

  py::class_<PyAssembler>(m, "Assembler")
      .def(py::init<int64_t, int, int64_t, std::string>())
      .def("open", &PyAssembler::Open)
      .def("close", &PyAssembler::Close)
      .def("accept", &PyAssembler::Accept)
      .def("missing", &PyAssembler::Missing)
      .def_property_readonly("whole", &PyAssembler::Whole)
      .def("arrived", &PyAssembler::Arrived);

  py::class_<Pacer>(m, "Pacer").def(py::init<double>()).def("when", &Pacer::When);

  py::class_<CloseRule>(m, "CloseRule")
      .def(py::init([](const py::object& policy, int num_rows, uint32_t c, double now) {
        return CloseRule(PolicyOf(policy, num_rows), c, now);
      }))
      .def("heard", &CloseRule::Heard)
      .def("ended", &CloseRule::Ended)
      .def("pauses", &CloseRule::Pauses)
      .def("check",
           [](CloseRule& rule, double now) {
             const CloseRule::Answer answer = rule.Check(now);
             const bool open = answer.reason == CloseRule::Reason::kOpen;
             return py::make_tuple(open ? py::none() : py::object(py::str(NameOf(answer.reason))),
                                   answer.wake_at);
           })
      .def("settled_at", &CloseRule::settled_at);

  py::class_<Outbox>(m, "Outbox")
      .def(py::init<std::vector<int>, uint32_t, size_t, bool, double, double>())
      .def("add", py::overload_cast<const std::vector<uint32_t>&>(&Outbox::Add))
      .def("add_rest", &Outbox::AddRest)
      .def("has_wanted", &Outbox::has_wanted)
      .def("nacked", &Outbox::Nacked)
      .def("done", &Outbox::Done)
      .def("leave", &Outbox::Leave)
      .def("heard", &Outbox::Heard)
      .def("take_back", &Outbox::TakeBack)
      .def("is_finished", &Outbox::is_finished)
      .def("is_done", &Outbox::is_done)
      .def("all_sent", &Outbox::all_sent)
      .def("next", [](Outbox& outbox, double now) -> py::object {
        const Outbox::Action& action = outbox.Next(now);
        switch (action.what) {
          case Outbox::What::kSend:
            return py::make_tuple("send", action.row, action.seqs);
          case Outbox::What::kEnd:
            return py::make_tuple("end", action.row, action.num_ends);
          case Outbox::What::kWait:
            return py::make_tuple("wait", action.wake_at);
          default:
            return py::make_tuple("finished");
        }
      });

  using namespace py::literals;
  py::class_<PyEndpoint>(m, "Endpoint")
      .def(py::init<py::object>(), "setup"_a)
      .def_property_readonly("port", [](PyEndpoint& e) { return e.get().port(); })
      .def(
          "add_peer",
          [](PyEndpoint& e, int rank, const std::string& address, int port,
             const py::bytes& send_key, const py::bytes& receive_key) {
            e.get().AddPeer(rank, address, port, send_key, receive_key);
          },
          "rank"_a, "address"_a, "port"_a, "send_key"_a, "receive_key"_a)
      .def("start", [](PyEndpoint& e) { e.get().Start(); })
      .def("probe", &PyEndpoint::Probe, "timeout_s"_a)
      .def("collect", &PyEndpoint::Collect, "round"_a, "stack_nd"_a, "policy"_a,
           "on_whole"_a = py::none())
      .def("send", &PyEndpoint::Send, "round"_a, "grad_d"_a, "max_loss"_a, "timeout_s"_a)
      .def("broadcast", &PyEndpoint::Broadcast, "round"_a, "params_d"_a, "to_n"_a, "rate_kbps"_a,
           "timeout_s"_a, "silence_s"_a)
      .def("receive", &PyEndpoint::Receive, "round"_a, "timeout_s"_a)
      .def("counters", &PyEndpoint::Counters)
      .def("server_left", &PyEndpoint::ServerLeft)
      .def("close", &PyEndpoint::Close);

  m.def("mailbox_bytes", &MailboxBytes, "dim"_a);
  m.def("board_bytes", &BoardBytes, "dim"_a);
  m.attr("BELL_BYTES") = kBellBytes;
  py::class_<PySharedServer>(m, "SharedServer")
      .def(py::init<const std::vector<int>&, int, int, int64_t>(), "mailboxes"_a, "board"_a,
           "bell"_a, "dim"_a)
      .def("collect", &PySharedServer::Collect, "round"_a, "stack_nd"_a, "live_n"_a, "quorum"_a,
           "timeout_s"_a, "arrived_n"_a, "settled_s_n"_a)
      .def("publish", &PySharedServer::Publish, "round"_a, "params_d"_a)
      .def("leave", &PySharedServer::Leave)
      .def_property_readonly("exchange", [](PySharedServer&) { return 0; })
      .def_property_readonly("fill", [](PySharedServer&) { return 0; })
      .def_property_readonly("outgoing",
                             [](PySharedServer&) { return AddressOf(&PySharedServer::NextParams); })
      .def_property_readonly("is_intact", [](PySharedServer&) { return 0; })
      .def_property_readonly("context", [](PySharedServer& server) { return AddressOf(&server); });
  py::class_<PySharedWorker>(m, "SharedWorker")
      .def(py::init<int, int, int, int64_t>(), "mailbox"_a, "board"_a, "bell"_a, "dim"_a)
      .def("put", &PySharedWorker::Put, "round"_a, "grad_d"_a)
      .def("receive", &PySharedWorker::Receive, "round"_a, "params_d"_a, "timeout_s"_a)
      .def("server_left", [](PySharedWorker& worker) { return worker.get().server_left(); });
  py::class_<PyWorkerRounds>(m, "WorkerRounds")
      .def(py::init<py::object, double, py::object>(), "end"_a, "max_loss"_a, "idle"_a)
      .def_property(
          "round", [](PyWorkerRounds& rounds) { return rounds.get().round.load(); },
          [](PyWorkerRounds& rounds, uint64_t round) { rounds.get().round = round; })
      .def_property_readonly("exchange", [](PyWorkerRounds&) { return AddressOf(&ExchangeRound); })
      .def_property_readonly(
          "fill",
          [](PyWorkerRounds& rounds) { return rounds.sends_parts() ? AddressOf(&FillRound) : 0; })
      .def_property_readonly("outgoing", [](PyWorkerRounds&) { return AddressOf(&NextGrad); })
      .def_property_readonly("is_intact", [](PyWorkerRounds&) { return AddressOf(&IsIntact); })
      .def_property_readonly("context",
                             [](PyWorkerRounds& rounds) { return AddressOf(&rounds.get()); });
}

}  // namespace
}  // namespace lossympi
