// lossympi._core: the data plane for Python. endpoint.py says what an Endpoint does, WIRE.md the
// shared memory; bindings_core.cc has the rest.
#include "lossympi/bindings.h"

#include <cxxabi.h>
#include <unistd.h>

#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <system_error>
#include <type_traits>

#include "lossympi/io/cipher.h"
#include "lossympi/io/endpoint.h"
#include "lossympi/io/shared.h"
#include "lossympi/io/worker_rounds.h"
#include "lossympi/native_round.h"

namespace lossympi {
namespace {

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
    const std::vector<uint32_t> rates = RatesOf(policy.attr("rate_kbps"), n);
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
        WithoutGil([&] { return endpoint_.Collect(r, data, p, rates, tell, CheckSignals); });
    return ClosedOf(closed);
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

  // The stack is kept as long as the endpoint: it writes there on its own.
  void Await(const py::object& row, const py::object& round, const py::array& stack,
             const py::object& policy) {
    CheckRole("await_row", true);
    const int n = setup().num_workers;
    float* data = WriteableDataOf("stack_nd", stack, py::make_tuple(n, setup().dim));
    const auto i = static_cast<int>(NumberIn("row", row, 0, n - 1));
    const ClosePolicy p = PolicyOf(policy, 1);
    const uint32_t rate = RatesOf(policy.attr("rate_kbps"), 1)[0];
    const uint64_t r = RoundOf(round);
    if (!stack_.is_none() && !stack_.is(stack)) {
      throw std::invalid_argument("all rows are of one stack_nd, got another. Pass the first.");
    }
    stack_ = stack;
    WithoutGil([&] {
      endpoint_.Await(i, r, data + i * setup().dim, p, rate);
      return true;
    });
  }

  py::list TakeClosed(double timeout) {
    CheckRole("take_closed", true);
    CheckSeconds("timeout_s", timeout);
    const auto all = WithoutGil([&] { return endpoint_.TakeClosed(timeout, CheckSignals); });
    py::list list;
    for (const auto& [row, closed] : all) list.append(py::make_tuple(row, ClosedOf(closed)));
    return list;
  }

  void Reply(const py::object& row, const py::object& round, const py::array& params,
             const py::object& rate_kbps, double silence) {
    CheckRole("reply", true);
    const float* data = DataOf("params_d", params, py::make_tuple(setup().dim));
    const auto i = static_cast<int>(NumberIn("row", row, 0, setup().num_workers - 1));
    const uint32_t rate = RateOf(rate_kbps);
    CheckSeconds("silence_s", silence);
    const uint64_t r = RoundOf(round);
    WithoutGil([&] {
      endpoint_.Reply(i, r, data, rate, silence);
      return true;
    });
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
    py::dict all;
    for (const auto& [rank, of_peer] : report.of_peer) {
      py::dict counts = CountsOf(of_peer.counts);
      counts["unsent"] = of_peer.unsent;
      all[py::int_(rank)] = counts;
    }
    py::dict nobody = CountsOf(report.of_nobody);
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

  py::object stack_ = py::none();  // goes after the endpoint
  Endpoint endpoint_;
};

class PySharedServer {
 public:
  PySharedServer(const std::vector<int>& mailboxes, int board, int bell, int64_t dim)
      : num_rows_(static_cast<int>(mailboxes.size())),
        dim_(dim),
        server_(mailboxes, board, bell, dim),
        native_{&server_, dim, nullptr, nullptr, NextParams, nullptr} {}
  PySharedServer(const PySharedServer&) = delete;
  PySharedServer& operator=(const PySharedServer&) = delete;

  // For C: where the next parameters may be written.
  const LossympiNativeRound& native() const { return native_; }

  // Reads `live_n` and `allowance_n`, and writes `arrived_n` and `settled_n`, while it runs.
  py::tuple Collect(const py::object& round, const py::array& stack, const Bools& live_n,
                    int quorum, double timeout, const py::object& f, double free,
                    const py::array_t<double, py::array::c_style>& allowance_n, Bools arrived_n,
                    py::array_t<double> settled_n) {
    float* data = WriteableDataOf("stack_nd", stack, py::make_tuple(num_rows_, dim_));
    if (live_n.size() != num_rows_ || arrived_n.size() != num_rows_ ||
        settled_n.size() != num_rows_ || allowance_n.size() != num_rows_) {
      throw std::invalid_argument(
          "live_n, allowance_s_n, arrived_n and settled_n must have a value for each row");
    }
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    std::vector<SharedServer::Row> rows(num_rows_);
    const SharedServer::Terms terms{
        reinterpret_cast<const uint8_t*>(live_n.data()), quorum, timeout,
        static_cast<int>(NumberIn("f", f, 0, INT_MAX)),  free,   allowance_n.data()};
    auto* arrived = reinterpret_cast<uint8_t*>(arrived_n.mutable_data());
    double* settled = settled_n.mutable_data();
    const Reason reason = WithoutGil(
        [&] { return server_.Collect(r, data, terms, arrived, settled, &rows, CheckSignals); });
    return py::make_tuple(NameOf(reason), CountsOf(rows));
  }

  // Writes `arrived_n` at its end.
  py::list Take(const std::vector<uint64_t>& rounds, const py::array& stack, const Bools& taken_n,
                Bools arrived_n, double timeout) {
    float* data = WriteableDataOf("stack_nd", stack, py::make_tuple(num_rows_, dim_));
    if (rounds.size() != static_cast<size_t>(num_rows_) || taken_n.size() != num_rows_ ||
        arrived_n.size() != num_rows_) {
      throw std::invalid_argument("rounds, taken_n and arrived_n must have a value for each row");
    }
    CheckSeconds("timeout_s", timeout);
    std::vector<SharedServer::Row> rows(num_rows_);
    for (int row = 0; row < num_rows_; ++row) rows[row].arrived = arrived_n.data()[row];
    const auto* taken = reinterpret_cast<const uint8_t*>(taken_n.data());
    WithoutGil([&] {
      server_.Take(rounds, data, taken, timeout, &rows, CheckSignals);
      return true;
    });
    for (int row = 0; row < num_rows_; ++row) arrived_n.mutable_data()[row] = rows[row].arrived;
    return CountsOf(rows);
  }

  void Reply(const py::object& row, const py::object& round, const py::array& params) {
    const float* data = DataOf("params_d", params, py::make_tuple(dim_));
    const int i = static_cast<int>(NumberIn("row", row, 0, num_rows_ - 1));
    const uint64_t r = NumberIn("round", round, 0, INT64_MAX);
    WithoutGil([&] {
      server_.Reply(i, r, data);
      return true;
    });
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

 private:
  static py::list CountsOf(const std::vector<SharedServer::Row>& rows) {
    py::list counts;
    for (const auto& row : rows) {
      counts.append(py::make_tuple(row.late, row.early, row.duplicate));
    }
    return counts;
  }
  static float* NextParams(void* server) {
    return static_cast<SharedServer*>(server)->next_params();
  }

  const int num_rows_;
  const int64_t dim_;
  SharedServer server_;
  const LossympiNativeRound native_;
};

class PySharedWorker {
 public:
  PySharedWorker(int mailbox, int board, int bell, int64_t dim, const py::object& row)
      : dim_(dim),
        worker_(mailbox, board, bell, dim, static_cast<int>(NumberIn("row", row, 0, 65535))) {}

  SharedWorker& get() { return worker_; }
  int64_t dim() const { return dim_; }

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

// A worker's end in Python: `dim`, send(round, grad_d, wait_s) -> bool, receive(round, wait_s) ->
// (round, params_d) or None, and server_left() -> bool. It may also have send_written(round,
// grad_d, wait_s) -> bool, written(first, count) and clear_written(), for parts of a gradient;
// next_grad()
// -> float32 [d]; is_intact() -> bool. See WorkerEnd.
class PyEnd : public WorkerEnd {
 public:
  explicit PyEnd(py::object end)
      : end_(std::move(end)),
        dim_(end_.attr("dim").cast<int64_t>()),
        sends_parts_(py::hasattr(end_, "send_written")) {}

  int64_t dim() const { return dim_; }
  bool Send(uint64_t round, const float* grad, double seconds) override {
    return Call<bool>([&] { return end_.attr("send")(round, View(grad), seconds); });
  }
  Model Receive(uint64_t round, double seconds) override {
    Model model{0, nullptr};
    Call<bool>([&] {
      const py::object found = end_.attr("receive")(round, seconds);
      if (found.is_none()) return py::object(py::bool_(false));
      const py::tuple pair(found);
      params_ = pair[1];
      model = {pair[0].cast<uint64_t>(), DataOf("params_d", pair[1], py::make_tuple(dim_))};
      return py::object(py::bool_(true));
    });
    return model;
  }
  bool server_left() override {
    return Call<bool>([&] { return end_.attr("server_left")(); });
  }
  bool sends_parts() const override { return sends_parts_; }
  void Written(int64_t first, int64_t count) override {
    Call<py::object>([&] { return end_.attr("written")(first, count); });
  }
  bool SendWritten(uint64_t round, const float* grad, double seconds) override {
    return Call<bool>([&] { return end_.attr("send_written")(round, View(grad), seconds); });
  }
  void ClearWritten() override {
    if (sends_parts_) Call<py::object>([&] { return end_.attr("clear_written")(); });
  }
  float* next_grad() override {
    float* grad = nullptr;
    Call<py::object>([&] {
      if (!py::hasattr(end_, "next_grad")) return py::object(py::none());
      next_grad_ = end_.attr("next_grad")();
      grad = WriteableDataOf("next_grad", next_grad_, py::make_tuple(dim_));
      return py::object(next_grad_);
    });
    return grad;
  }
  bool is_intact() override {
    return Call<bool>([&] {
      return py::hasattr(end_, "is_intact") ? py::object(end_.attr("is_intact")())
                                            : py::object(py::bool_(true));
    });
  }

 private:
  // The result of f, which calls Python; an exception becomes one that outlives Python's lock.
  template <typename T, typename F>
  static T Call(F f) {
    std::optional<py::gil_scoped_acquire> gil;
    TakingGil([&gil] { gil.emplace(); });
    try {
      const py::object result = f();
      if constexpr (std::is_same_v<T, bool>) return result.template cast<bool>();
      return T();
    } catch (const py::error_already_set& error) {
      throw std::runtime_error(error.what());
    } catch (const py::cast_error& error) {
      throw std::runtime_error(error.what());
    }
  }
  py::array View(const float* grad) const {
    return Floats(dim_, grad, py::capsule(grad, [](void*) {}));  // of the caller's memory
  }

  py::object end_;
  const int64_t dim_;
  const bool sends_parts_;
  py::object params_ = py::none();
  py::array next_grad_;
};

class PyWorkerRounds {
 public:
  // The end of the link is kept alive. What `idle` raises ends the round.
  PyWorkerRounds(py::object end, double max_loss, py::object idle)
      : kept_(std::move(end)), idle_(std::move(idle)) {
    int64_t dim;
    if (py::isinstance<PySharedWorker>(kept_)) {
      auto& worker = kept_.cast<PySharedWorker&>();
      dim = worker.dim();
      end_ = std::make_unique<SharedEnd>(&worker.get());
    } else if (py::isinstance<PyEndpoint>(kept_)) {
      Endpoint& endpoint = kept_.cast<PyEndpoint&>().get();
      dim = endpoint.framing().dim;
      end_ = std::make_unique<UdpEnd>(&endpoint, max_loss);
    } else {
      auto python = std::make_unique<PyEnd>(kept_);
      dim = python->dim();
      end_ = std::move(python);
    }
    rounds_ =
        std::make_unique<WorkerRounds>(end_.get(), dim, [this](auto... of) { return Ask(of...); });
  }
  WorkerRounds& get() { return *rounds_; }

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
    size_t bytes = std::min(std::strlen(words), size_t{LOSSYMPI_MESSAGE_BYTES - 1});
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

uintptr_t AddressOf(const LossympiNativeRound& native) {
  return reinterpret_cast<uintptr_t>(&native);
}

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
  BindCore(m);

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
      .def("await_row", &PyEndpoint::Await, "row"_a, "round"_a, "stack_nd"_a, "policy"_a)
      .def("take_closed", &PyEndpoint::TakeClosed, "timeout_s"_a)
      .def("reply", &PyEndpoint::Reply, "row"_a, "round"_a, "params_d"_a, "rate_kbps"_a,
           "silence_s"_a)
      .def("receive", &PyEndpoint::Receive, "round"_a, "timeout_s"_a)
      .def("counters", &PyEndpoint::Counters)
      .def("server_left", &PyEndpoint::ServerLeft)
      .def("close", &PyEndpoint::Close);

  m.def("mailbox_bytes", &MailboxBytes, "dim"_a);
  m.def("board_bytes", &BoardBytes, "dim"_a, "num_workers"_a);
  m.attr("BELL_BYTES") = kBellBytes;
  py::class_<PySharedServer>(m, "SharedServer")
      .def(py::init<const std::vector<int>&, int, int, int64_t>(), "mailboxes"_a, "board"_a,
           "bell"_a, "dim"_a)
      .def("collect", &PySharedServer::Collect, "round"_a, "stack_nd"_a, "live_n"_a, "quorum"_a,
           "timeout_s"_a, "f"_a, "free_s"_a, "allowance_s_n"_a, "arrived_n"_a, "settled_s_n"_a)
      .def("publish", &PySharedServer::Publish, "round"_a, "params_d"_a)
      .def("take", &PySharedServer::Take, "rounds_n"_a, "stack_nd"_a, "taken_n"_a, "arrived_n"_a,
           "timeout_s"_a)
      .def("reply", &PySharedServer::Reply, "row"_a, "round"_a, "params_d"_a)
      .def("leave", &PySharedServer::Leave)
      .def_property_readonly("address",
                             [](PySharedServer& server) { return AddressOf(server.native()); });
  py::class_<PySharedWorker>(m, "SharedWorker")
      .def(py::init<int, int, int, int64_t, py::object>(), "mailbox"_a, "board"_a, "bell"_a,
           "dim"_a, "row"_a)
      .def("put", &PySharedWorker::Put, "round"_a, "grad_d"_a)
      .def("receive", &PySharedWorker::Receive, "round"_a, "params_d"_a, "timeout_s"_a)
      .def("server_left", [](PySharedWorker& worker) { return worker.get().server_left(); });
  py::class_<PyWorkerRounds>(m, "WorkerRounds")
      .def(py::init<py::object, double, py::object>(), "end"_a, "max_loss"_a, "idle"_a)
      .def_property(
          "round", [](PyWorkerRounds& rounds) { return rounds.get().round.load(); },
          [](PyWorkerRounds& rounds, uint64_t round) { rounds.get().round = round; })
      .def_property_readonly(
          "address", [](PyWorkerRounds& rounds) { return AddressOf(rounds.get().native()); });
}

}  // namespace
}  // namespace lossympi
