// The part of CUDA's driver API that we use, resolved at run time from the driver that the machine has, if any.
//
// Declared here instead of including cuda.h, so that one build serves machines without CUDA and with CUDA 12 or 13.
// Prototypes and numbers: CUDA driver API, stable ABI; the versioned names (_v2) are those that cuda.h has meant since 12.
//
// Owns: the library handle, for the life of the process. Blocks? driver(), the first time, while the driver starts (100 ms
//   and more). Thread: all safe. Errors: none by driver(): a machine without CUDA is no error. check throws kDevice.
// Fork: a process must not use the driver that its parent has started; neither does torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace zmqpp::device {

using Result = int;
using Ordinal = int;  // of a device, as this process counts: CUDA_VISIBLE_DEVICES decides
using Address = std::uint64_t;
struct ContextState;
struct StreamState;
struct EventState;
struct ModuleState;
struct FunctionState;
using ContextHandle = ContextState*;
using StreamHandle = StreamState*;  // torch.cuda.Stream.cuda_stream is one; null: the legacy default stream
using EventHandle = EventState*;
using ModuleHandle = ModuleState*;
using FunctionHandle = FunctionState*;

struct Uuid {
  unsigned char bytes[16];
};
struct IpcMemory {
  unsigned char bytes[64];
};

using HostFunction = void (*)(void* data);

struct Driver {
  Result (*init)(unsigned flags);
  Result (*driver_version)(int* version);
  Result (*error_name)(Result, const char**);
  Result (*error_string)(Result, const char**);
  Result (*device_count)(int*);
  Result (*device_name)(char*, int size, Ordinal);
  Result (*device_uuid)(Uuid*, Ordinal);
  Result (*device_memory)(std::size_t*, Ordinal);
  Result (*primary_retain)(ContextHandle*, Ordinal);
  Result (*primary_release)(Ordinal);
  Result (*context_push)(ContextHandle);
  Result (*context_pop)(ContextHandle*);
  Result (*stream_create)(StreamHandle*, unsigned flags, int priority);
  Result (*stream_destroy)(StreamHandle);
  Result (*stream_query)(StreamHandle);
  Result (*stream_wait_event)(StreamHandle, EventHandle, unsigned flags);
  Result (*stream_priorities)(int* least, int* greatest);
  Result (*stream_capturing)(StreamHandle, int* status);  // 0: into no graph
  Result (*exchange_capture_mode)(int* mode);             // of the calling thread
  Result (*launch_host)(StreamHandle, HostFunction, void*);
  Result (*event_create)(EventHandle*, unsigned flags);
  Result (*event_destroy)(EventHandle);
  Result (*event_record)(EventHandle, StreamHandle);
  Result (*event_query)(EventHandle);
  Result (*memory_allocate)(Address*, std::size_t);
  Result (*memory_free)(Address);
  Result (*memory_range)(Address* base, std::size_t* size, Address);
  Result (*copy)(Address to, Address from, std::size_t, StreamHandle);  // whichever kind of memory both are
  Result (*host_allocate)(void**, std::size_t, unsigned flags);
  Result (*host_free)(void*);
  Result (*host_register)(void*, std::size_t, unsigned flags);
  Result (*host_unregister)(void*);
  Result (*ipc_export_memory)(IpcMemory*, Address);
  Result (*ipc_open_memory)(Address*, IpcMemory, unsigned flags);
  Result (*ipc_close_memory)(Address);
  Result (*module_load)(ModuleHandle*, const void* image);
  Result (*module_unload)(ModuleHandle);
  Result (*module_function)(FunctionHandle*, ModuleHandle, const char* name);
  Result (*launch_kernel)(FunctionHandle, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned threads_x,
                          unsigned threads_y, unsigned threads_z, unsigned shared_bytes, StreamHandle, void** arguments,
                          void** extra);
};

inline constexpr Result kSuccess = 0;
inline constexpr Result kNotReady = 600;
inline constexpr Result kAlreadyRegistered = 712;

inline constexpr unsigned kStreamNonBlocking = 1;  // does not wait for the legacy default stream
inline constexpr unsigned kEventNoTiming = 2;
inline constexpr unsigned kHostPortable = 1;  // pinned for every context
inline constexpr unsigned kIpcLazyPeerAccess = 1;
inline constexpr int kCaptureRelaxed = 2;  // no call of this thread disturbs a graph that another one captures

// Null where there is none that works: why_none says why.
const Driver* driver();
bool is_usable() noexcept;  // false too in a process forked from the one that started the driver: there nothing may be freed
std::string why_none();
std::string library();  // where it was found; empty without one
int version();          // 13000: CUDA 13.0, the newest this driver knows; 0 without one

// Throws kDevice with the driver's own words, unless `result` is kSuccess.
void check(Result result, const char* op, const std::string& what);
std::string text_of(Result result);

}  // namespace zmqpp::device
