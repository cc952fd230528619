// lossympi._core: the data plane for Python. endpoint.py tells what an Endpoint does; the rest is
// the core, for the tests that compare it with its twin in plane/.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <system_error>

#include "lossympi/core/assembler.h"
#include "lossympi/core/close_rule.h"
#include "lossympi/core/drop.h"
#include "lossympi/core/pacer.h"
#include "lossympi/core/packet.h"
#include "lossympi/io/cipher.h"
#include "lossympi/io/endpoint.h"

namespace py = pybind11;

namespace lossympi {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool>;

Wire WireOf(const std::string& name) {
  if (name == "float32") return Wire::kFloat32;
  if (name == "float16") return Wire::kFloat16;
  if (name == "bfloat16") return Wire::kBfloat16;
  throw std::invalid_argument("a wire type is float32, float16 or bfloat16; got '" + name + "'");
}

const char* NameOf(CloseRule::Reason reason) {
  constexpr const char* kNames[] = {"open", "complete", "early", "deadline"};
  return kNames[static_cast<int>(reason)];
}

// Of exactly this shape and dtype: a copy would not be what the caller holds.
const float* DataOf(const py::array& array, const std::vector<py::ssize_t>& shape) {
  bool fits = py::isinstance<Floats>(array) && array.ndim() == static_cast<int>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = array.shape(i) == shape[i];
  if (!fits)
    throw std::invalid_argument("an array must be float32, in C order, of the link's shape");
  return static_cast<const float*>(array.data());
}

float* WriteableDataOf(const py::array& array, const std::vector<py::ssize_t>& shape) {
  if (!array.writeable()) throw std::invalid_argument("the stack must be writeable");
  return const_cast<float*>(DataOf(array, shape));
}

Bools BoolsOf(const std::vector<uint8_t>& bytes, std::vector<py::ssize_t> shape) {
  Bools array(std::move(shape));
  static_assert(sizeof(bool) == 1);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(array.mutable_data()));
  return array;
}

void CheckPositive(double seconds, const char* what) {
  if (!(seconds >= 0)) throw std::invalid_argument(std::string(what) + " must be >= 0 seconds");
}

// Lets Ctrl-C end a wait.
void CheckSignals() {
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

ClosePolicy PolicyOf(const py::object& policy, size_t num_rows) {
  ClosePolicy p{
      policy.attr("deadline_s").cast<double>(), policy.attr("grace_s").cast<double>(),
      policy.attr("quiet_s").cast<double>(),    policy.attr("max_loss").cast<double>(),
      policy.attr("quorum").cast<int>(),        policy.attr("live_n").cast<std::vector<bool>>()};
  CheckPositive(p.deadline, "deadline_s");
  CheckPositive(p.grace, "grace_s");
  CheckPositive(p.quiet, "quiet_s");
  if (!(p.max_loss >= 0 && p.max_loss <= 1)) throw std::invalid_argument("max_loss is in 0..1");
  if (p.quorum < 1) throw std::invalid_argument("quorum is at least 1");
  if (p.live.size() != num_rows) throw std::invalid_argument("live_n has one flag a worker");
  return p;
}

Setup SetupOf(const py::object& s) {
  Setup setup{s.attr("rank").cast<int>(),
              s.attr("num_workers").cast<int>(),
              s.attr("address").cast<std::string>(),
              s.attr("session").cast<uint32_t>(),
              s.attr("dim").cast<int64_t>(),
              WireOf(s.attr("wire").cast<std::string>()),
              s.attr("mtu").cast<int64_t>(),
              SuiteOf(s.attr("cipher").cast<std::string>()),
              s.attr("drop").cast<double>(),
              s.attr("drop_seed").cast<uint64_t>(),
              s.attr("receive_buffer").cast<int>()};
  if (setup.num_workers < 1 || setup.rank < 0 || setup.rank > setup.num_workers ||
      setup.num_workers > 65535) {
    throw std::invalid_argument("ranks are 0..num_workers, of at most 65535 workers");
  }
  if (setup.dim < 1 || setup.dim > int64_t{1} << 31) {
    throw std::invalid_argument("dim is in 1..2^31");
  }
  if (setup.mtu < 28 + 48 + 64 || setup.mtu > 65535) {
    throw std::invalid_argument("mtu is in 140..65535 bytes");
  }
  if (!(setup.drop >= 0 && setup.drop <= 1)) throw std::invalid_argument("drop is in 0..1");
  return setup;
}

class PyEndpoint {
 public:
  explicit PyEndpoint(const py::object& setup) : endpoint_(SetupOf(setup)) {}

  Endpoint& get() { return endpoint_; }
  const Setup& setup() const { return endpoint_.setup(); }

  void CheckServer(bool server) const {
    if ((setup().rank == 0) != server) {
      throw std::invalid_argument(server ? "only the server does this" : "only a worker does this");
    }
  }
  void CheckRound(uint64_t round) const {
    if (round == 0) throw std::invalid_argument("rounds start at 1");
  }

  py::object Collect(uint64_t round, const py::array& stack, const py::object& policy) {
    CheckServer(true);
    CheckRound(round);
    const int n = setup().num_workers;
    float* data = WriteableDataOf(stack, {n, setup().dim});
    const ClosePolicy p = PolicyOf(policy, n);
    const auto rate = policy.attr("rate_kbps").cast<uint32_t>();
    if (rate == 0) throw std::invalid_argument("rate_kbps is at least 1");
    Closed closed;
    {
      py::gil_scoped_release no_gil;
      closed = endpoint_.Collect(round, data, p, rate, CheckSignals);
    }
    const auto c = static_cast<py::ssize_t>(closed.arrived.size()) / n;
    const py::array_t<double> settled(n, closed.settled.data());
    return py::module_::import("lossympi.endpoint")
        .attr("Closed")(NameOf(closed.reason), closed.elapsed, BoolsOf(closed.arrived, {n, c}),
                        BoolsOf(closed.heard, {n}), settled);
  }

  bool Send(uint64_t round, const py::array& grad, double max_loss, double timeout) {
    CheckServer(false);
    CheckRound(round);
    CheckPositive(timeout, "timeout_s");
    const float* data = DataOf(grad, {setup().dim});
    py::gil_scoped_release no_gil;
    return endpoint_.Send(round, data, max_loss, timeout, CheckSignals);
  }

  Bools Broadcast(uint64_t round, const py::array& params, const std::vector<bool>& to,
                  uint32_t rate_kbps, double timeout, double silence) {
    CheckServer(true);
    CheckRound(round);
    CheckPositive(timeout, "timeout_s");
    CheckPositive(silence, "silence_s");
    if (to.size() != static_cast<size_t>(setup().num_workers) || rate_kbps == 0) {
      throw std::invalid_argument("to_n has one flag a worker, and rate_kbps is at least 1");
    }
    const float* data = DataOf(params, {setup().dim});
    std::vector<uint8_t> done;
    {
      py::gil_scoped_release no_gil;
      done = endpoint_.Broadcast(round, data, to, rate_kbps, timeout, silence, CheckSignals);
    }
    return BoolsOf(done, {setup().num_workers});
  }

  // `self` is kept alive by the array, whose memory is the endpoint's.
  static py::object Receive(const py::object& self, uint64_t round, double timeout) {
    auto& endpoint = self.cast<PyEndpoint&>();
    endpoint.CheckServer(false);
    endpoint.CheckRound(round);
    CheckPositive(timeout, "timeout_s");
    uint64_t of = 0;
    {
      py::gil_scoped_release no_gil;
      of = endpoint.endpoint_.Receive(round, timeout, CheckSignals);
    }
    if (of == 0) return py::none();
    Floats model(endpoint.setup().dim, endpoint.endpoint_.model(), self);
    model.attr("setflags")(py::arg("write") = false);
    return py::make_tuple(of, model);
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
  Endpoint endpoint_;
};

// The assembler with the arrays that it writes to kept alive.
class PyAssembler {
 public:
  PyAssembler(int64_t dim, int num_rows, int64_t floats, const std::string& wire)
      : assembler_(Checked(num_rows), Cut{dim, floats, WireOf(wire)}), num_rows_(num_rows) {}

  void Open(uint64_t round, const py::array& rows) {
    assembler_.Open(round, WriteableDataOf(rows, {num_rows_, assembler_.cut().dim}));
    rows_ = rows;
  }
  void Close(uint64_t round) {
    assembler_.Close(round);
    rows_ = py::none();
  }
  std::string Accept(int row, uint64_t round, uint32_t seq, uint32_t total,
                     const std::string& payload) {
    const Header header{Kind::kData, 0, 0, round, seq, total, 0};
    return lossympi::NameOf(assembler_.Accept(
        row, header, reinterpret_cast<const uint8_t*>(payload.data()), payload.size()));
  }
  uint32_t Missing(int row) const { return assembler_.missing(Row(row)); }
  Bools Arrived(int row) const {
    const uint8_t* a = assembler_.arrived(Row(row));
    const auto c = static_cast<py::ssize_t>(assembler_.cut().NumDatagrams());
    return BoolsOf(std::vector<uint8_t>(a, a + c), {c});
  }

 private:
  static int Checked(int num_rows) {
    if (num_rows < 1) throw std::invalid_argument("at least one row is needed");
    return num_rows;
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
      .def("arrived", &PyAssembler::Arrived);

  py::class_<Pacer>(m, "Pacer").def(py::init<double>()).def("when", &Pacer::When);

  py::class_<CloseRule>(m, "CloseRule")
      .def(py::init([](const py::object& policy, int num_rows, uint32_t c, double now) {
        return CloseRule(PolicyOf(policy, num_rows), c, now);
      }))
      .def("heard", &CloseRule::Heard)
      .def("ended", &CloseRule::Ended)
      .def("check",
           [](CloseRule& rule, double now) {
             const CloseRule::Answer answer = rule.Check(now);
             const bool open = answer.reason == CloseRule::Reason::kOpen;
             return py::make_tuple(open ? py::none() : py::object(py::str(NameOf(answer.reason))),
                                   answer.wake_at);
           })
      .def("settled_at", &CloseRule::settled_at);

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
      .def(
          "probe",
          [](PyEndpoint& e, double timeout) {
            py::gil_scoped_release no_gil;
            return e.get().Probe(timeout, CheckSignals);
          },
          "timeout_s"_a)
      .def("collect", &PyEndpoint::Collect, "round"_a, "stack_nd"_a, "policy"_a)
      .def("send", &PyEndpoint::Send, "round"_a, "grad_d"_a, "max_loss"_a, "timeout_s"_a)
      .def("broadcast", &PyEndpoint::Broadcast, "round"_a, "params_d"_a, "to_n"_a, "rate_kbps"_a,
           "timeout_s"_a, "silence_s"_a)
      .def("receive", &PyEndpoint::Receive, "round"_a, "timeout_s"_a)
      .def("counters", &PyEndpoint::Counters)
      .def("server_left", [](PyEndpoint& e) { return e.get().server_left(); })
      .def("close", [](PyEndpoint& e) {
        py::gil_scoped_release no_gil;
        e.get().Close();
      });
}

}  // namespace
}  // namespace lossympi
