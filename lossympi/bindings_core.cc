#include "lossympi/bindings.h"
#include "lossympi/core/assembler.h"
#include "lossympi/core/close_rule.h"
#include "lossympi/core/credit.h"
#include "lossympi/core/drop.h"
#include "lossympi/core/pacer.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/peer_layout.h"
#include "lossympi/core/protocol.h"
#include "lossympi/core/send_queue.h"
#include "lossympi/io/cipher.h"

namespace lossympi {
namespace {

// The assembler with the arrays that it writes to kept alive.
class PyAssembler {
 public:
  PyAssembler(int64_t dim, int num_rows, int64_t floats, const std::string& wire)
      : assembler_(AtLeast1(num_rows), Framing{AtLeast1(dim), AtLeast1(floats), WireOf(wire)}),
        num_rows_(num_rows) {}

  void Open(uint64_t round, const py::array& rows) {
    if (round <= assembler_.newest_round()) throw std::invalid_argument("rounds must increase");
    const py::tuple shape = py::make_tuple(num_rows_, assembler_.framing().dim);
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
    const auto c = static_cast<py::ssize_t>(assembler_.framing().NumDatagrams());
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

py::tuple TupleOf(const Header& h) {
  return py::make_tuple(static_cast<int>(h.kind), h.rank, h.session, h.round, h.seq, h.total,
                        h.counter);
}

Header HeaderOf(const py::tuple& fields) {
  return {static_cast<Kind>(fields[0].cast<int>()),
          fields[1].cast<uint16_t>(),
          fields[2].cast<uint32_t>(),
          fields[3].cast<uint64_t>(),
          fields[4].cast<uint32_t>(),
          fields[5].cast<uint32_t>(),
          fields[6].cast<uint64_t>()};
}

py::bytes BytesOf(const std::vector<uint8_t>& bytes) {
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

py::list ListOf(const Datagrams& datagrams) {
  py::list list;
  for (const Outgoing& d : datagrams) {
    list.append(py::make_tuple(d.row, static_cast<int>(d.kind), d.round, d.seq, d.total,
                               BytesOf(d.payload)));
  }
  return list;
}

py::tuple ActionOf(const SendQueue::Action& action) {
  switch (action.what) {
    case SendQueue::What::kSend:
      return py::make_tuple("send", action.row, action.seqs);
    case SendQueue::What::kEnd:
      return py::make_tuple("end", action.row, action.num_ends);
    case SendQueue::What::kWait:
      return py::make_tuple("wait", action.wake_at);
    default:
      return py::make_tuple("finished");
  }
}

void BindProtocols(py::module_& m) {
  py::class_<PeerLayout>(m, "PeerLayout")
      .def(py::init([](int rank, int num_workers, uint32_t session, int64_t dim, int64_t floats,
                       const std::string& wire, size_t longest_datagram, size_t tag_bytes) {
        return PeerLayout{
            rank,     num_workers, session, Framing{dim, floats, WireOf(wire)}, longest_datagram,
            tag_bytes};
      }))
      .def("open", [](const PeerLayout& layout, const std::string& data) -> py::tuple {
        const auto* bytes = reinterpret_cast<const uint8_t*>(data.data());
        const Envelope e = OpenEnvelope(layout, bytes, data.size());
        if (e.verdict != Verdict::kAccepted) {
          return py::make_tuple(NameOf(e.verdict), e.row, py::none(), py::bytes());
        }
        return py::make_tuple(NameOf(e.verdict), e.row, TupleOf(e.header),
                              py::bytes(data.substr(kHeaderBytes, e.signed_bytes - kHeaderBytes)));
      });

  py::class_<Protocol>(m, "Protocol")
      .def("handle",
           [](Protocol& protocol, int row, const py::tuple& header, const std::string& payload,
              double now) {
             const Handled handled = protocol.Handle(
                 row, HeaderOf(header), reinterpret_cast<const uint8_t*>(payload.data()),
                 payload.size(), now);
             return py::make_tuple(NameOf(handled.verdict), handled.changed,
                                   ListOf(handled.to_send));
           })
      .def("counts", [](Protocol& protocol, int row) { return CountsOf(protocol.counts(row)); })
      .def_property_readonly("queue", &Protocol::queue, py::return_value_policy::reference_internal)
      .def("probe", [](Protocol& protocol) { return ListOf(protocol.Probe()); })
      .def("forget_echoes",
           [](Protocol& protocol, const std::vector<uint32_t>& challenges) {
             if (challenges.size() != static_cast<size_t>(protocol.num_peers())) {
               throw std::invalid_argument("each peer has a challenge");
             }
             protocol.ForgetEchoes(challenges);
           })
      .def("all_echoed", &Protocol::all_echoed)
      .def("longest_echo", &Protocol::longest_echo)
      .def("bye", [](Protocol& protocol) { return ListOf(protocol.Bye()); })
      .def("missing", &Protocol::missing);

  py::class_<ServerProtocol, Protocol>(m, "ServerProtocol")
      .def(py::init<const PeerLayout&>())
      .def(
          "open_round",
          [](ServerProtocol& server, uint64_t round, const py::array& stack,
             const py::object& policy, double now) {
            const py::tuple shape = stack.attr("shape");
            const ClosePolicy p = PolicyOf(policy, shape[0].cast<size_t>());
            if (round <= server.newest_round()) {
              throw std::invalid_argument("rounds must increase");
            }
            const auto rates = RatesOf(policy.attr("rate_kbps"), shape[0].cast<size_t>());
            float* const rows = WriteableDataOf("stack_nd", stack, shape);
            return ListOf(server.OpenRound(round, rows, p, rates, now));
          },
          py::keep_alive<1, 3>())
      .def(
          "await_round",
          [](ServerProtocol& server, uint64_t round, const py::array& stack,
             const py::object& policy) {
            const py::tuple shape = stack.attr("shape");
            const auto n = shape[0].cast<size_t>();
            server.AwaitRound(round, WriteableDataOf("stack_nd", stack, shape), PolicyOf(policy, n),
                              RatesOf(policy.attr("rate_kbps"), n));
          },
          py::keep_alive<1, 3>())
      .def_static("of_one",
                  [](const ServerProtocol& all, int row) { return new ServerProtocol(all, row); })
      .def("start_reply", &ServerProtocol::StartReply, py::return_value_policy::reference_internal)
      .def("end_reply", &ServerProtocol::EndReply)
      .def("abandon_round", &ServerProtocol::AbandonRound)
      .def_property_readonly("whole", &ServerProtocol::whole)
      .def("tell_at", &ServerProtocol::TellAt)
      .def("wake_at", &ServerProtocol::wake_at)
      .def("tick", [](ServerProtocol& server, double now) { return ListOf(server.Tick(now)); })
      .def_property_readonly("closed",
                             [](ServerProtocol& server) {
                               return server.closed() ? ClosedOf(*server.closed())
                                                      : py::object(py::none());
                             })
      .def("start_broadcast", &ServerProtocol::StartBroadcast,
           py::return_value_policy::reference_internal)
      .def("end_broadcast", [](ServerProtocol& server, double now) {
        const std::vector<uint8_t> done = server.EndBroadcast(now);
        return std::vector<bool>(done.begin(), done.end());
      });

  py::class_<WorkerProtocol, Protocol>(m, "WorkerProtocol")
      .def(py::init<const PeerLayout&>())
      .def_property_readonly("server_left", &WorkerProtocol::server_left)
      .def("ask_for_grant", &WorkerProtocol::AskForGrant)
      .def("ask_for_model", &WorkerProtocol::AskForModel)
      .def("stop_asking", &WorkerProtocol::StopAsking)
      .def("wake_at", &WorkerProtocol::wake_at)
      .def("tick", [](WorkerProtocol& worker, double now) { return ListOf(worker.Tick(now)); })
      .def("is_granted", &WorkerProtocol::IsGranted)
      .def("is_over", &WorkerProtocol::IsOver)
      .def_property_readonly("granted_kbps", &WorkerProtocol::granted_kbps)
      .def("gradient", &WorkerProtocol::Gradient, py::return_value_policy::reference_internal)
      .def("end_gradient", &WorkerProtocol::EndGradient)
      .def("pause",
           [](WorkerProtocol& worker, uint64_t round) { return ListOf(worker.Pause(round)); })
      .def_property_readonly("whole_round", &WorkerProtocol::whole_round)
      .def("take_model", &WorkerProtocol::TakeModel)
      .def_property_readonly("model", [](WorkerProtocol& worker) {
        return Floats(worker.dim(), worker.model());  // a copy
      });
}

}  // namespace

void BindCore(py::module_& m) {
  m.def("pack", [](int kind, uint16_t rank, uint32_t session, uint64_t round, uint32_t seq,
                   uint32_t total, uint64_t counter) {
    uint8_t to[kHeaderBytes];
    Pack({static_cast<Kind>(kind), rank, session, round, seq, total, counter}, to);
    return py::bytes(reinterpret_cast<char*>(to), sizeof to);
  });
  m.def("unpack", [](const std::string& bytes) {
    if (bytes.size() < kHeaderBytes) throw std::invalid_argument("a header has 32 bytes");
    return TupleOf(Unpack(reinterpret_cast<const uint8_t*>(bytes.data())));
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
    const auto* bytes = reinterpret_cast<const uint8_t*>(bitmap.data());
    if (!IsSoundNack(first, bytes, bitmap.size(), total)) return py::none();
    std::vector<uint32_t> wanted;
    ReadNack(first, bytes, bitmap.size(), [&](uint32_t seq) { wanted.push_back(seq); });
    return py::array_t<uint32_t>(wanted.size(), wanted.data());
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

  py::class_<Credit>(m, "Credit")
      .def(py::init<int>())
      .def("refill", &Credit::Refill)
      .def("in_debt", &Credit::in_debt)
      .def("charge", &Credit::Charge);

  py::class_<Pacer>(m, "Pacer").def(py::init<double>()).def("when", &Pacer::When);

  m.def("closed_by",
        [](int num_live, int num_complete, int num_settled, int quorum, bool is_late,
           int num_given_up) -> py::object {
          const Reason reason =
              ClosedBy(num_live, num_complete, num_settled, quorum, is_late, num_given_up);
          return reason == Reason::kOpen ? py::none() : py::object(py::str(NameOf(reason)));
        });
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
             const bool open = answer.reason == Reason::kOpen;
             return py::make_tuple(open ? py::none() : py::object(py::str(NameOf(answer.reason))),
                                   answer.wake_at);
           })
      .def("settled_at", &CloseRule::settled_at);

  py::class_<SendQueue>(m, "SendQueue")
      .def(py::init<std::vector<int>, uint32_t, size_t, bool, double, double>())
      .def("add", py::overload_cast<const std::vector<uint32_t>&>(&SendQueue::Add))
      .def("add_rest", &SendQueue::AddRest)
      .def("has_wanted", &SendQueue::has_wanted)
      .def("hurry", &SendQueue::Hurry)
      .def("stay", &SendQueue::Stay)
      .def("take_nack", &SendQueue::TakeNack)
      .def("nacked", &SendQueue::Nacked)
      .def("done", &SendQueue::Done)
      .def("leave", &SendQueue::Leave)
      .def("heard", &SendQueue::Heard)
      .def("take_back", &SendQueue::TakeBack)
      .def("is_finished", &SendQueue::is_finished)
      .def("is_done", &SendQueue::is_done)
      .def("all_sent", &SendQueue::all_sent)
      .def("overtime", &SendQueue::Overtime)
      .def("next", [](SendQueue& queue, double now) { return ActionOf(queue.Next(now)); });

  BindProtocols(m);
}

}  // namespace lossympi
