// Settings of a link, checked by zmqpp/config.py and zmqpp/endpoint.py before they get here.
//
// Owns: values. Blocks? never. Thread: read only after open. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "net/curve.h"
#include "wire/head.h"

namespace zmqpp::engine {

// What the receiver thread does with control messages by itself, so that they cut through without Python.
enum class Relay : int {
  kNone = 0,     // deliver everything
  kForward = 1,  // REQUEST and NOTICE: pass on, then deliver; REPLY: pass on only
  kReturn = 2,   // the last place: as kForward, but REQUEST is delivered only
};

// Which way payload shall take; what it takes then is decided once, when the peer has come.
enum class LaneChoice : int {
  kAuto = 0,    // shared where the peer can open the segment, else the socket
  kSocket = 1,
  kShared = 2,  // or fail; through the host's memory
  kDevice = 3,  // as kShared, but tensors on devices from device to device, or fail
};

enum class Lane : int { kUndecided = 0, kSocket = 1, kShared = 2, kDevice = 3 };

inline bool must_share(LaneChoice lane) { return lane == LaneChoice::kShared || lane == LaneChoice::kDevice; }
inline bool may_use_devices(LaneChoice lane) { return lane == LaneChoice::kAuto || lane == LaneChoice::kDevice; }

struct Options {
  std::string bind;      // empty: no sending half
  std::string connect;   // empty: no receiving half
  std::string name;      // of this place, told to the next one
  std::string previous;  // for error texts: "stage 0"
  std::string next;
  std::string expect;    // the name that the previous place must give; empty: any
  std::int64_t rank = -1;        // -1: places have no ranks here
  std::int64_t world_size = 0;
  Relay relay = Relay::kNone;
  net::KeyPair keys;     // of the pipeline; none: links are open to whoever reaches them

  std::size_t chunk_bytes = 512u << 10;
  std::size_t inline_bytes = 64u << 10;
  std::size_t pool_chunks = 16;
  std::size_t queue_bytes = 256u << 20;
  std::size_t queue_items = 1024;
  std::size_t receive_limit_bytes = 256u << 20;
  LaneChoice lane = LaneChoice::kAuto;
  std::size_t shm_bytes = 640u << 20;
  std::size_t shm_hold_bytes = 0;  // 0: half of the segment
  std::size_t spin_us = 250;
  int device = -1;                           // on which received tensors shall be; -1: none, the link may still send from one
  std::size_t device_ring_bytes = 128u << 20;  // of device memory, for tensors that the receiver copies from device to device
  std::size_t pinned_bytes = 256u << 20;     // of a segment, and for what is not lent out of one, that devices reach by themselves
  std::size_t pinned_pool_bytes = 64u << 20;  // of chunks, where a device fills them; pool_chunks if that is more
  bool checksum = false;
  wire::Limits limits;
  double heartbeat_s = 1.0;
  double peer_timeout_s = 5.0;
  bool bear_silence = false;  // of the previous place, whose end is seen by other means
  double handshake_s = 10.0;
};

inline constexpr std::size_t kMaxRelays = 65536;    // queued control messages that may be waiting to be passed on
inline constexpr std::size_t kMaxControls = 65536;  // received control messages that may be waiting for the caller

}  // namespace zmqpp::engine
