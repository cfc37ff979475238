// The part of libzmq's C API we use, resolved at run time from the copy that pyzmq has loaded.
//
// Declared here instead of including zmq.h, so that the build needs no system package and the process keeps one
// libzmq. Prototypes and numbers: libzmq 4.3 include/zmq.h, stable ABI.
//
// Owns: the library handle, for the life of the process. Blocks? never.
// Thread: load_zmq is serialised; zmq() may be called anywhere after it succeeded.
// Errors: load_zmq throws kResource (no library, a symbol missing) or kUnsupported (older than 4.3.3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace zmqpp::net {

// zmq_msg_t: 64 opaque bytes with the alignment of a pointer.
struct alignas(void*) RawMessage {
  unsigned char opaque[64];
};

struct PollItem {
  void* socket;
  int fd;
  short events;
  short revents;
};

using FreeFn = void (*)(void* bytes, void* hint);

struct ZmqApi {
  void (*version)(int*, int*, int*);
  int (*last_errno)();
  const char* (*strerror)(int);
  void* (*ctx_new)();
  int (*ctx_set)(void*, int, int);
  int (*ctx_term)(void*);
  void* (*socket)(void*, int);
  int (*close)(void*);
  int (*setsockopt)(void*, int, const void*, std::size_t);
  int (*getsockopt)(void*, int, void*, std::size_t*);
  int (*bind)(void*, const char*);
  int (*connect)(void*, const char*);
  int (*disconnect)(void*, const char*);
  int (*socket_monitor)(void*, const char*, int);
  int (*poll)(PollItem*, int, long);
  int (*msg_init)(RawMessage*);
  int (*msg_init_size)(RawMessage*, std::size_t);
  int (*msg_init_data)(RawMessage*, void*, std::size_t, FreeFn, void*);
  int (*msg_move)(RawMessage*, RawMessage*);
  int (*msg_close)(RawMessage*);
  int (*msg_send)(RawMessage*, void*, int);
  int (*msg_recv)(RawMessage*, void*, int);
  void* (*msg_data)(RawMessage*);
  std::size_t (*msg_size)(const RawMessage*);
  int (*msg_more)(const RawMessage*);
  std::uint8_t* (*z85_decode)(std::uint8_t*, const char*);
};

// `module_path`: the compiled backend module of pyzmq, which is linked to libzmq. May be empty.
void load_zmq(const std::string& module_path);
const ZmqApi& zmq();
std::string zmq_error_text();  // of the calling thread's last failed call

enum SocketType : int { kPair = 0, kRouter = 6, kPull = 7, kPush = 8 };

enum Option : int {
  kAffinity = 4,
  kFd = 14,
  kEvents = 15,
  kLinger = 17,
  kReconnectIvl = 18,
  kReconnectIvlMax = 21,
  kMaxMsgSize = 22,
  kSndHwm = 23,
  kRcvHwm = 24,
  kLastEndpoint = 32,
  kTcpKeepalive = 34,
  kTcpKeepaliveCnt = 35,
  kTcpKeepaliveIdle = 36,
  kTcpKeepaliveIntvl = 37,
  kIpv6 = 42,
  kCurveServer = 47,
  kCurvePublicKey = 48,
  kCurveSecretKey = 49,
  kCurveServerKey = 50,
  kZapDomain = 55,
  kHandshakeIvl = 66,
  kConnectTimeout = 79,
};

inline constexpr int kCtxIoThreads = 1;
inline constexpr int kCtxBlocky = 70;
inline constexpr int kDontWait = 1;
inline constexpr int kSendMore = 2;
inline constexpr short kPollIn = 1;
inline constexpr short kPollOut = 2;

enum MonitorBit : int {
  kConnected = 0x0001,
  kConnectDelayed = 0x0002,
  kConnectRetried = 0x0004,
  kAccepted = 0x0020,
  kDisconnected = 0x0200,
  kHandshakeFailedNoDetail = 0x0800,
  kHandshakeSucceeded = 0x1000,
  kHandshakeFailedProtocol = 0x2000,
  kHandshakeFailedAuth = 0x4000,
};

// Values of kHandshakeFailedProtocol.
inline constexpr int kProtocolCryptographic = 0x11000001;
inline constexpr int kProtocolMechanismMismatch = 0x11000002;

inline constexpr int kErrTerm = 156384765;  // ETERM

}  // namespace zmqpp::net
