// A UDP socket that moves many datagrams a system call, and never fragments one.
#ifndef LOSSYMPI_IO_UDP_SOCKET_H_
#define LOSSYMPI_IO_UDP_SOCKET_H_

#include <netinet/in.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lossympi {

double Now();  // seconds, monotonic

// Throws std::invalid_argument unless `address` is a numeric IPv4 one.
sockaddr_in AddressOf(const std::string& address, int port);
// The same for one host's: not that of many, nor of none.
sockaddr_in PeerAddressOf(const std::string& address, int port);
inline bool SameAddress(const sockaddr_in& a, const sockaddr_in& b) {
  return a.sin_addr.s_addr == b.sin_addr.s_addr && a.sin_port == b.sin_port;
}

// Where datagrams go.
struct Destination {
  explicit Destination(const sockaddr_in& to) : address(to) {}
  const sockaddr_in address;
  // Whether the kernel may be given many at once (GSO): not where the device to it cannot. Two
  // threads send.
  std::atomic<bool> gso{true};
};

class UdpSocket {
 public:
  // Binds to a port that the kernel chooses. Throws std::system_error.
  UdpSocket(const std::string& address, int64_t longest_datagram, int receive_buffer);
  ~UdpSocket();
  UdpSocket(const UdpSocket&) = delete;
  UdpSocket& operator=(const UdpSocket&) = delete;

  int port() const { return port_; }  // also when it is closed
  // Nothing is received from now on, and what is sent is lost. While no other call is at work.
  void Close();

  // Waits until there is something to receive, Wake is called or `timeout` seconds have passed.
  void Wait(double timeout);
  void Wake();

  // Calls handle(data, size, from) for each datagram that is there, up to a batch; a datagram
  // longer than `longest_datagram` is given with its size, but only its beginning. Returns whether
  // there may be more.
  template <typename F>
  bool Receive(F handle);

  // Sends `count` datagrams that lie one after the other, all of `size` bytes but the last, of
  // `last_size`. Returns how many this host did not send: too long for its device, refused, no
  // route, or no room; they are lost, as they might be in the network. For room it waits for 10 ms
  // at most, and only if it `may_wait`.
  size_t Send(Destination* to, const uint8_t* datagrams, size_t size, size_t count,
              size_t last_size, bool may_wait);
  void WaitForRoom();  // to send, for 10 ms at most
  // Datagrams that one call of Send moves at most.
  size_t most_at_once(size_t size) const;

  // Has the kernel drop what comes from anybody else, unless they are so many that the search would
  // cost more than it saves.
  void KeepOnly(const std::vector<sockaddr_in>& sources);

  // Datagrams that the kernel has dropped since the last call: those that found the buffer full,
  // and those of strangers, or damaged ones. The kernel does not tell them apart, the fill of the
  // buffer does, if it was not read since.
  struct Drops {
    uint32_t overflow, filtered;
  };
  Drops NewDrops();

 private:
  struct Batch;
  void Open(const sockaddr_in& local, const std::string& address, int64_t longest_datagram,
            int receive_buffer);
  int ReceiveBatch();
  // Of datagram group i in the batch: its bytes, and the size of each datagram in it.
  struct Group {
    const uint8_t* data;
    size_t size, each;
    sockaddr_in from;
    bool truncated;
  };
  Group GroupOf(int i);

  // The same, joined to one message or not; *error is the last one's.
  size_t SendOnce(const Destination& to, const uint8_t* datagrams, size_t size, size_t count,
                  size_t last_size, bool joined, bool may_wait, int* error);

  int fd_ = -1, wake_fd_ = -1, port_ = 0;
  bool gro_ = false;
  bool has_fill_ = false;      // the kernel tells how full the buffer is
  uint32_t dropped_ = 0;       // datagrams, by the kernel
  uint32_t seen_dropped_ = 0;  // by NewDrops
  std::unique_ptr<Batch> batch_;
};

template <typename F>
bool UdpSocket::Receive(F handle) {
  const int received = ReceiveBatch();
  for (int i = 0; i < received; ++i) {
    const Group group = GroupOf(i);
    // The kernel joins datagrams of one sender and one size; only the last may be shorter.
    for (size_t at = 0; at < group.size || at == 0; at += group.each) {
      const size_t left = group.size - at;
      const size_t size = group.truncated ? group.size + 1 : left < group.each ? left : group.each;
      handle(group.data + at, size, group.from);
    }
  }
  return received > 0;
}

}  // namespace lossympi

#endif  // LOSSYMPI_IO_UDP_SOCKET_H_
