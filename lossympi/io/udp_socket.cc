#include "lossympi/io/udp_socket.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <system_error>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace lossympi {
namespace {

constexpr int kGroups = 32;            // messages a recvmmsg
constexpr size_t kGroupBytes = 65536;  // of datagrams that the kernel has joined
constexpr size_t kSegments = 44;       // datagrams a sendmsg; the kernel takes 64, and 64 KiB
constexpr size_t kMostSources = 128;   // that are sought one by one, for each datagram
constexpr int kRoomWaitMs = 10;

[[noreturn]] void Fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

void Set(int fd, int level, int option, int value, const char* what) {
  if (setsockopt(fd, level, option, &value, sizeof value) != 0) Fail(what);
}

}  // namespace

double Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

sockaddr_in AddressOf(const std::string& address, int port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<uint16_t>(port));
  if (port < 0 || port > 65535 || inet_pton(AF_INET, address.c_str(), &a.sin_addr) != 1) {
    throw std::invalid_argument(
        "an endpoint needs a numeric IPv4 address and a port in 0..65535; got " + address + ":" +
        std::to_string(port) + ". Resolve the name first.");
  }
  return a;
}

sockaddr_in PeerAddressOf(const std::string& address, int port) {
  const sockaddr_in a = AddressOf(address, port);
  const uint32_t host = ntohl(a.sin_addr.s_addr);
  if (host == INADDR_ANY || host >= INADDR_UNSPEC_GROUP) {  // multicast and what is above
    throw std::invalid_argument("a peer needs the address of one host; got " + address +
                                ". Pass that of its own network card.");
  }
  return a;
}

struct UdpSocket::Batch {
  size_t bytes;  // for a message
  std::vector<uint8_t> data;
  mmsghdr messages[kGroups];
  iovec vectors[kGroups];
  sockaddr_in from[kGroups];
  alignas(cmsghdr) uint8_t control[kGroups][CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t))];
};

UdpSocket::UdpSocket(const std::string& address, int64_t longest_datagram, int receive_buffer)
    : batch_(std::make_unique<Batch>()) {
  const sockaddr_in local = AddressOf(address, 0);
  try {
    Open(local, address, longest_datagram, receive_buffer);
  } catch (...) {
    Close();  // no destructor runs
    throw;
  }
}

void UdpSocket::Open(const sockaddr_in& local, const std::string& address, int64_t longest_datagram,
                     int receive_buffer) {
  fd_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd_ < 0) Fail("no UDP socket");
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd_ < 0) Fail("no eventfd");
  // A lost fragment would lose a datagram of many; so none is ever cut. Nor is ICMP believed, which
  // anybody can forge: it would have the kernel refuse what the path carries, for ten minutes.
  Set(fd_, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, "fragmentation could not be forbidden");
  // The first needs a privilege, the second stops at net.core.rmem_max.
  if (setsockopt(fd_, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof receive_buffer) != 0) {
    Set(fd_, SOL_SOCKET, SO_RCVBUF, receive_buffer, "SO_RCVBUF");
  }
  const int send_buffer = 4 << 20;
  if (setsockopt(fd_, SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer, sizeof send_buffer) != 0) {
    Set(fd_, SOL_SOCKET, SO_SNDBUF, send_buffer, "SO_SNDBUF");
  }
  uint32_t fill[SK_MEMINFO_VARS];
  socklen_t fill_bytes = sizeof fill;
  has_fill_ =
      getsockopt(fd_, SOL_SOCKET, SO_MEMINFO, fill, &fill_bytes) == 0 && fill_bytes == sizeof fill;
  if (!has_fill_) Set(fd_, SOL_SOCKET, SO_RXQ_OVFL, 1, "SO_RXQ_OVFL");
  const int on = 1;
  gro_ = setsockopt(fd_, IPPROTO_UDP, UDP_GRO, &on, sizeof on) == 0;
  if (bind(fd_, reinterpret_cast<const sockaddr*>(&local), sizeof local) != 0) {
    Fail("no UDP socket on " + address);
  }
  sockaddr_in bound;
  socklen_t size = sizeof bound;
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) Fail("getsockname");
  port_ = ntohs(bound.sin_port);

  batch_->bytes = gro_ ? kGroupBytes : static_cast<size_t>(longest_datagram);
  batch_->data.resize(kGroups * batch_->bytes);
}

UdpSocket::~UdpSocket() { Close(); }

void UdpSocket::Close() {
  for (int* fd : {&fd_, &wake_fd_}) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
}

void UdpSocket::Wait(double timeout) {
  pollfd fds[2] = {{fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
  const double seconds = std::clamp(timeout, 0.0, 3600.0);
  const timespec t = {static_cast<time_t>(seconds),
                      static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
  // poll() would round up to a millisecond.
  if (ppoll(fds, 2, &t, nullptr) > 0 && fds[1].revents != 0) {
    uint64_t count;
    [[maybe_unused]] const ssize_t drained = read(wake_fd_, &count, sizeof count);
  }
}

void UdpSocket::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof one);
}

int UdpSocket::ReceiveBatch() {
  Batch& b = *batch_;
  for (int i = 0; i < kGroups; ++i) {
    b.vectors[i] = {&b.data[i * b.bytes], b.bytes};
    b.messages[i] = {};
    msghdr& header = b.messages[i].msg_hdr;
    header.msg_name = &b.from[i];
    header.msg_namelen = sizeof b.from[i];
    header.msg_iov = &b.vectors[i];
    header.msg_iovlen = 1;
    header.msg_control = b.control[i];
    header.msg_controllen = sizeof b.control[i];
  }
  const int received = recvmmsg(fd_, b.messages, kGroups, MSG_DONTWAIT, nullptr);
  if (received < 0) {
    // ECONNREFUSED and the like tell of a datagram sent before; it counts as lost.
    return 0;
  }
  return received;
}

UdpSocket::Group UdpSocket::GroupOf(int i) {
  mmsghdr& message = batch_->messages[i];
  Group group;
  group.data = &batch_->data[i * batch_->bytes];
  group.size = message.msg_len;
  group.each = std::max<size_t>(message.msg_len, 1);
  group.from = batch_->from[i];
  group.truncated = (message.msg_hdr.msg_flags & MSG_TRUNC) != 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message.msg_hdr); c != nullptr;
       c = CMSG_NXTHDR(&message.msg_hdr, c)) {
    if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
      int each;
      std::memcpy(&each, CMSG_DATA(c), sizeof each);
      if (each > 0) group.each = static_cast<size_t>(each);
    } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
      std::memcpy(&dropped_, CMSG_DATA(c), sizeof dropped_);
    }
  }
  return group;
}

void UdpSocket::KeepOnly(const std::vector<sockaddr_in>& sources) {
  if (!has_fill_ || sources.size() > kMostSources) return;
  // The program sees the datagram from its UDP header on, and the IP header by a negative offset.
  std::vector<sock_filter> program;
  const auto add = [&program](int code, uint32_t k, int if_not = 0) {
    program.push_back({static_cast<uint16_t>(code), 0, static_cast<uint8_t>(if_not), k});
  };
  for (const sockaddr_in& source : sources) {
    add(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(SKF_NET_OFF) + 12);
    add(BPF_JMP | BPF_JEQ | BPF_K, ntohl(source.sin_addr.s_addr), 3);
    add(BPF_LD | BPF_H | BPF_ABS, 0);
    add(BPF_JMP | BPF_JEQ | BPF_K, ntohs(source.sin_port), 1);
    add(BPF_RET | BPF_K, UINT32_MAX);  // all of it
  }
  add(BPF_RET | BPF_K, 0);
  const sock_fprog filter{static_cast<uint16_t>(program.size()), program.data()};
  // Without it strangers cost more, and that is all.
  setsockopt(fd_, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter);
}

UdpSocket::Drops UdpSocket::NewDrops() {
  bool is_full = true;
  if (has_fill_) {
    uint32_t fill[SK_MEMINFO_VARS];
    socklen_t fill_bytes = sizeof fill;
    if (getsockopt(fd_, SOL_SOCKET, SO_MEMINFO, fill, &fill_bytes) != 0) return {0, 0};  // closed
    dropped_ = fill[SK_MEMINFO_DROPS];
    // Batches may have been read since the last look, and the kernel counts late what was.
    is_full = fill[SK_MEMINFO_RMEM_ALLOC] >= fill[SK_MEMINFO_RCVBUF] / 2;
  }
  const uint32_t news = dropped_ - seen_dropped_;
  seen_dropped_ = dropped_;
  return is_full ? Drops{news, 0} : Drops{0, news};
}

size_t UdpSocket::most_at_once(size_t size) const {
  return std::clamp<size_t>(65000 / std::max<size_t>(size, 1), 1, kSegments);
}

void UdpSocket::WaitForRoom() {
  pollfd writable = {fd_, POLLOUT, 0};
  poll(&writable, 1, kRoomWaitMs);
}

size_t UdpSocket::Send(Destination* to, const uint8_t* datagrams, size_t size, size_t count,
                       size_t last_size, bool may_wait) {
  const bool joined = count > 1 && to->gso;
  int error = 0;
  size_t lost = SendOnce(*to, datagrams, size, count, last_size, joined, may_wait, &error);
  if (joined && (error == EIO || error == EINVAL || error == EOPNOTSUPP || error == EMSGSIZE)) {
    // It was the joining only if each by itself goes through.
    lost = SendOnce(*to, datagrams, size, count, last_size, false, may_wait, &error);
    if (lost == 0) to->gso = false;
  }
  return lost;
}

size_t UdpSocket::SendOnce(const Destination& to, const uint8_t* datagrams, size_t size,
                           size_t count, size_t last_size, bool joined, bool may_wait, int* error) {
  iovec vectors[kSegments];
  mmsghdr messages[kSegments];
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(uint16_t))] = {};
  const size_t num_messages = joined ? 1 : count;
  for (size_t i = 0; i < num_messages; ++i) {
    const size_t bytes = joined ? (count - 1) * size + last_size : i + 1 < count ? size : last_size;
    vectors[i] = {const_cast<uint8_t*>(datagrams + i * size), bytes};
    messages[i] = {};
    messages[i].msg_hdr.msg_name = const_cast<sockaddr_in*>(&to.address);
    messages[i].msg_hdr.msg_namelen = sizeof to.address;
    messages[i].msg_hdr.msg_iov = &vectors[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  if (joined) {  // the kernel cuts it, or the network card does
    messages[0].msg_hdr.msg_control = control;
    messages[0].msg_hdr.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&messages[0].msg_hdr);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    const auto segment = static_cast<uint16_t>(size);
    std::memcpy(CMSG_DATA(c), &segment, sizeof segment);
  }
  size_t tried = 0, lost = 0;
  for (int full = 0; tried < num_messages;) {
    const int done =
        sendmmsg(fd_, messages + tried, static_cast<unsigned>(num_messages - tried), MSG_DONTWAIT);
    if (done > 0) {
      tried += static_cast<size_t>(done);
    } else if (errno == EINTR) {
      continue;
    } else if ((errno == EAGAIN || errno == ENOBUFS) && may_wait && full++ == 0) {
      WaitForRoom();
    } else {
      *error = errno;
      ++tried;
      lost += joined ? count : 1;
    }
  }
  return lost;
}

}  // namespace lossympi
