// What is left to be sent of one vector, to whom, and when: END, NACK and DONE of WIRE.md. No
// socket, no clock: the time is passed in, in seconds.
#ifndef LOSSYMPI_CORE_SEND_QUEUE_H_
#define LOSSYMPI_CORE_SEND_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lossympi {

class SendQueue {
 public:
  // When all is sent, two ENDs at once, as one may be lost, and a third a little later; then, until
  // there is an answer, one after twice the time each time.
  static constexpr int kEnds = 3;
  static constexpr double kThirdAfter = 0.0004, kLongestPause = 0.010;
  // Meanwhile, in the first pass, END asks for a report after each quarter of a vector that is not
  // short: most of what is lost is on its way again before the last datagram has left.
  static constexpr uint32_t kReports = 4, kShort = 64;

  // To each of `rows`, `num_datagrams` of them, at most `most_at_once` a burst, when Add and
  // AddRest have told that they may leave. With `until_done` what is NACKed is sent again until the
  // row is Done, or not Heard for `silence` after an END. Once most rows are Done, t after the
  // start, the others have until 4 t + silence: a worker that never has enough must not hold up the
  // others for long. One that is to Hurry has until t + max(t, kHurry).
  static constexpr double kHurry = 0.020;
  SendQueue(const std::vector<int>& rows, uint32_t num_datagrams, size_t most_at_once,
            bool until_done, double silence, double now);

  void Add(const std::vector<uint32_t>& seqs);  // they may leave
  void AddRest();                               // so may all others, and then END

  void Hurry(int row);  // before the first Next
  void Stay();  // a row that is silent is not given up: nothing is sent to it until it is Heard

  // Whether a NACK with a bitmap of so many bytes may be looked at: not before an END, which alone
  // is answered, not of a row that is finished, and no more than the ENDs allow, each of which asks
  // for one bitmap of all.
  bool TakeNack(int row, size_t bytes);
  // Ignored, too, before an END, and of what has left since the last END: it was on its way when
  // that was answered.
  void Nacked(int row, uint32_t seq);
  void Done(int row, double now);
  void Leave(int row);  // it will not answer any more
  void Heard(int row);

  enum class What { kSend, kEnd, kWait, kFinished };
  struct Action {
    What what;
    int row;                     // kSend, kEnd
    std::vector<uint32_t> seqs;  // kSend: ascending, and the last datagram of all only at its end
    uint32_t num_ends;           // kEnd: how many were sent, this one included; 0 for a report
    double wake_at;              // kWait: ask again then, or after Nacked or Done
  };
  // What to do now; it is taken to be done. The action is valid until the next call. Rows take
  // turns. kFinished before AddRest: nothing is left of what was added.
  const Action& Next(double now);
  void TakeBack();  // what the last kSend named has not been sent

  bool is_finished(int row) const;  // nothing more is sent to it; true for a row not served
  bool is_done(int row) const;      // false for a row that is not served
  bool all_sent(int row) const;     // each datagram at least once
  // For how long until now it was waited for, beyond what one that hurries has; 0 if it hurries.
  double Overtime(int row, double now) const;
  bool has_wanted() const;  // something is to be sent now, to whoever
  size_t most_at_once() const { return most_at_once_; }

 private:
  enum Want : uint8_t { kNot, kNow, kLater, kOnItsWay };
  struct Flow {
    int row;
    std::vector<Want> wanted;              // [c]
    std::vector<uint32_t> on_their_way{};  // what has left since the last END, and more perhaps
    uint32_t num_wanted = 0;               // now
    uint32_t next = 0;                     // where the search for a wanted one goes on
    uint32_t num_sent = 0;                 // datagrams
    uint32_t report_at = 0;                // datagrams sent
    uint32_t num_ends = 0;                 // in all
    int ends_now = 0;                      // since datagrams were sent last
    size_t nack_bytes = 0;                 // of bitmaps that may be looked at
    double end_at;                         // when the next END is due
    bool asked = false;                    // an END was sent, for whatever reason
    double asked_at;                       // the first since the row was heard; infinity for none
    bool hurries = false;
    bool finished = false;  // nothing is sent any more
    double finished_at;     // infinity if it is not
    bool done = false;      // because the row said so
  };
  Flow* Find(int row);
  const Flow* Find(int row) const { return const_cast<SendQueue*>(this)->Find(row); }
  double Pause(int num_ends) const;
  static void Add(Flow& flow, uint32_t seq);
  static void Finish(Flow& flow, double now);
  void TakeBurst(Flow& flow, double now);
  const Action& Ask(Flow& flow, uint32_t num_ends, double now);  // by an END

  const size_t most_at_once_;
  const bool until_done_;
  const double silence_;
  const double begun_at_;
  double leave_at_;       // when the rows that are not done are given up
  double hurry_at_;       // and those that are to hurry
  bool has_all_ = false;  // after AddRest
  bool stays_ = false;
  std::vector<Flow> flows_;
  std::vector<int> flow_of_row_;  // -1: none
  size_t num_done_ = 0;
  size_t turn_ = 0;
  Action action_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_SEND_QUEUE_H_
