#include "net/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstddef>

namespace zmqpp::net {
namespace {

constexpr int kAsked = 2;  // times in vain

using AddressOf = int (*)(int, sockaddr*, socklen_t*);

std::string raw_address(int fd, AddressOf address_of) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (address_of(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  if (address.ss_family != AF_INET && address.ss_family != AF_INET6) return "";
  return {reinterpret_cast<const char*>(&address), size};
}

}  // namespace

std::string connection_name(int fd) {
  const std::string here = raw_address(fd, ::getsockname), there = raw_address(fd, ::getpeername);
  return here.empty() || there.empty() ? "" : here + there;
}

bool is_unanswered(int fd, const std::string& name, double for_s) {
  tcp_info found{};
  socklen_t size = sizeof found;
  if (name.empty() || ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &found, &size) != 0) return false;
  if (size < offsetof(tcp_info, tcpi_last_ack_recv) + sizeof found.tcpi_last_ack_recv) return false;
  // A shut window is probed ever more rarely, so that the silence between two probes means nothing; and of two probes
  // within half a second Linux answers one (tcp_invalid_ratelimit).
  const bool asked = found.tcpi_retransmits >= kAsked || found.tcpi_probes >= kAsked;
  return asked && found.tcpi_last_ack_recv >= for_s * 1000 && connection_name(fd) == name;
}

}  // namespace zmqpp::net
