// A CUDA driver without a GPU, for ZMQPP_CUDA_LIBRARY: the functions of csrc/device/driver.h over host memory.
//
// What is given to a stream is done later, after a random pause, by that stream's own thread: who did not wait reads the bytes
// of before, and streams overtake one another unless events forbid it. Calls without a current context, with an event of
// another context, or with memory that is not the driver's fail as they do with CUDA.
//
//   FAKE_CUDA_DEVICES=2  FAKE_CUDA_SEED=1  FAKE_CUDA_PAUSE_US=200 (the longest pause)  FAKE_CUDA_IPC=0 (not supported)
//   FAKE_CUDA_KERNELS=0 (no image fits the device)  FAKE_CUDA_PINNABLE_MIB=32 (of memory that was there, at a time)
//   CUDA_VISIBLE_DEVICES as with CUDA, numbers only
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <vector>

#include "fake_kernels.h"
#include "fake_memory.h"
#include "fake_stream.h"

namespace {

using namespace fake;  // NOLINT: a library of its own

constexpr int kInvalid = 1, kNoMemory = 2, kNoDevice = 100, kNoContext = 201, kHandle = 400, kNotFound = 500, kNotReady = 600,
              kUnsupported = 801, kAlreadyRegistered = 712, kNotRegistered = 713, kContextMismatch = 709, kInvalidImage = 200, kNoBinary = 209,
              kLaunchFailed = 719;

int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::atoi(text) : otherwise;
}

// The physical number of each device this process sees.
std::vector<int> visible() {
  std::vector<int> all;
  const int devices = setting("FAKE_CUDA_DEVICES", 2);
  const char* chosen = std::getenv("CUDA_VISIBLE_DEVICES");
  if (chosen == nullptr) {
    for (int i = 0; i < devices; ++i) all.push_back(i);
    return all;
  }
  std::stringstream words(chosen);
  for (std::string word; std::getline(words, word, ',');) {
    const int one = std::atoi(word.c_str());
    if (one < 0 || one >= devices) break;
    all.push_back(one);
  }
  return all;
}

struct Context {
  int ordinal;
};

struct Event {
  explicit Event(Context* in) : context(in), word(std::make_shared<EventWord>()) {}
  Context* context;
  std::shared_ptr<EventWord> word;
  std::string name;  // of the shared memory it is in, when it may be exported
};

struct Handle {  // of memory or of an event, as another process gets it: 64 bytes
  char name[40];
  std::uint64_t size;
  int physical;
  int pad;
};
static_assert(sizeof(Handle) <= 64);

struct Process {
  std::vector<int> devices = visible();
  std::vector<Context> contexts;
  Memory memory;
  std::mutex mutex;
  std::vector<std::unique_ptr<Stream>> legacy;
  std::atomic<int> early_frees{0};
  std::atomic<bool> broken{false};

  Process() {
    for (int i = 0; i < static_cast<int>(devices.size()); ++i) contexts.push_back({i});
    for (Context& each : contexts) legacy.push_back(make_stream(&each));
  }
  std::unique_ptr<Stream> make_stream(Context* context) {
    static std::atomic<int> made{0};
    return std::make_unique<Stream>(context, setting("FAKE_CUDA_SEED", 1) * 1000 + made++, setting("FAKE_CUDA_PAUSE_US", 200));
  }
};

Process& process() {
  static Process* one = new Process;  // never torn down: its threads may still run when the process ends
  return *one;
}

thread_local std::vector<Context*> current;

Context* here() { return current.empty() ? nullptr : current.back(); }
bool is_known(int ordinal) { return ordinal >= 0 && ordinal < static_cast<int>(process().devices.size()); }

Stream* stream_of(void* handle) {
  if (handle != nullptr) return static_cast<Stream*>(handle);
  return here() != nullptr ? process().legacy[static_cast<std::size_t>(here()->ordinal)].get() : nullptr;
}

}  // namespace

#define CUDA extern "C" __attribute__((visibility("default"))) int

CUDA cuInit(unsigned) { return process().devices.empty() ? kNoDevice : 0; }
CUDA cuDriverGetVersion(int* version) { return *version = setting("FAKE_CUDA_VERSION", 13000), 0; }
CUDA cuGetErrorName(int error, const char** name) { return *name = error == kNoMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE", 0; }
CUDA cuGetErrorString(int error, const char** text) { return *text = error == kNoMemory ? "out of memory" : "as the fake driver says", 0; }

// ---- devices and contexts ----------------------------------------------------------------------------------------

CUDA cuDeviceGetCount(int* count) { return *count = static_cast<int>(process().devices.size()), 0; }
CUDA cuDeviceGetName(char* name, int size, int ordinal) {
  if (!is_known(ordinal)) return kInvalid;
  std::snprintf(name, static_cast<std::size_t>(size), "Fake %d", process().devices[static_cast<std::size_t>(ordinal)]);
  return 0;
}
CUDA cuDeviceGetUuid_v2(void* uuid, int ordinal) {
  if (!is_known(ordinal)) return kInvalid;
  std::memset(uuid, 0, 16);
  std::memcpy(uuid, &process().devices[static_cast<std::size_t>(ordinal)], sizeof(int));
  return 0;
}
CUDA cuDeviceTotalMem_v2(std::size_t* bytes, int ordinal) { return *bytes = std::size_t{1} << 30, is_known(ordinal) ? 0 : kInvalid; }
CUDA cuDeviceGetAttribute(int* value, int, int ordinal) { return *value = 1, is_known(ordinal) ? 0 : kInvalid; }
CUDA cuDeviceCanAccessPeer(int* can, int a, int b) { return *can = a != b, is_known(a) && is_known(b) ? 0 : kInvalid; }
CUDA cuDevicePrimaryCtxRetain(void** context, int ordinal) {
  if (!is_known(ordinal)) return kInvalid;
  return *context = &process().contexts[static_cast<std::size_t>(ordinal)], 0;
}
CUDA cuDevicePrimaryCtxRelease_v2(int ordinal) { return is_known(ordinal) ? 0 : kInvalid; }
CUDA cuCtxPushCurrent_v2(void* context) { return current.push_back(static_cast<Context*>(context)), 0; }
CUDA cuCtxPopCurrent_v2(void** context) {
  if (current.empty()) return kNoContext;
  *context = current.back();
  current.pop_back();
  return 0;
}
CUDA cuCtxEnablePeerAccess(void*, unsigned) { return here() != nullptr ? 0 : kNoContext; }
CUDA cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, 0; }

// ---- streams and events ------------------------------------------------------------------------------------------

CUDA cuStreamCreateWithPriority(void** stream, unsigned, int) {
  if (here() == nullptr) return kNoContext;
  return *stream = process().make_stream(here()).release(), 0;
}
CUDA cuStreamDestroy_v2(void* stream) { return delete static_cast<Stream*>(stream), 0; }
CUDA cuStreamQuery(void* stream) {
  Stream* found = stream_of(stream);
  if (process().broken) return kLaunchFailed;
  return found == nullptr ? kNoContext : found->idle() ? 0 : kNotReady;
}
// Not CUDA's: as if a kernel had failed; what was given to the streams is done all the same, so it may still come.
CUDA fake_break(int on) { return process().broken = on != 0, 0; }
CUDA cuStreamIsCapturing(void* stream, int* status) {
  Stream* found = stream_of(stream);
  if (found == nullptr) return kNoContext;
  return *status = found->is_capturing() ? 1 : 0, 0;
}
// Not CUDA's: as if the stream captured a graph.
CUDA fake_capture(void* stream, int on) { return static_cast<Stream*>(stream)->capture(on != 0), 0; }
CUDA cuThreadExchangeStreamCaptureMode(int* mode) {
  thread_local int own = 0;  // global, as with CUDA
  return std::swap(own, *mode), 0;
}
CUDA cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  Stream* found = stream_of(stream);
  if (found == nullptr) return kNoContext;
  return found->give([=] { function(data); }), 0;
}
CUDA cuEventCreate(void** event, unsigned flags) {
  if (here() == nullptr) return kNoContext;
  auto made = std::make_unique<Event>(here());
  if ((flags & 4) != 0) {
    void* shared = make_shared_memory(sizeof(EventWord), made->name);
    if (shared == nullptr) return kNoMemory;
    made->word = std::shared_ptr<EventWord>(new (shared) EventWord, [name = made->name](EventWord* word) {
      free_shared_memory(word, sizeof *word, name);
    });
  }
  return *event = made.release(), 0;
}
CUDA cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), 0; }
CUDA cuEventRecord(void* event, void* stream) {
  Stream* found = stream_of(stream);
  auto* one = static_cast<Event*>(event);
  if (found == nullptr) return kNoContext;
  if (one->context != found->context()) return kHandle;
  const std::uint64_t count = ++one->word->recorded;
  found->give([word = one->word, count] { word->completed = count; });
  return 0;
}
CUDA cuEventQuery(void* event) {
  const EventWord& word = *static_cast<Event*>(event)->word;
  return word.completed.load() >= word.recorded.load() ? 0 : kNotReady;
}
CUDA cuEventSynchronize(void* event) {
  const auto word = static_cast<Event*>(event)->word;
  return await(*word, word->recorded.load()), 0;
}
CUDA cuStreamWaitEvent(void* stream, void* event, unsigned) {
  Stream* found = stream_of(stream);
  if (found == nullptr) return kNoContext;
  const auto word = static_cast<Event*>(event)->word;
  found->give([word, count = word->recorded.load()] { await(*word, count); });
  return 0;
}
CUDA cuStreamWriteValue64_v2(void* stream, std::uint64_t address, std::uint64_t value, unsigned) {
  Stream* found = stream_of(stream);
  if (found == nullptr || !process().memory.find(address)) return found == nullptr ? kNoContext : kInvalid;
  found->give([=] { reinterpret_cast<std::atomic<std::uint64_t>*>(address)->store(value); });
  return 0;
}
CUDA cuStreamWaitValue64_v2(void* stream, std::uint64_t address, std::uint64_t value, unsigned) {
  Stream* found = stream_of(stream);
  if (found == nullptr || !process().memory.find(address)) return found == nullptr ? kNoContext : kInvalid;
  found->give([=] {
    while (static_cast<std::int64_t>(reinterpret_cast<std::atomic<std::uint64_t>*>(address)->load() - value) < 0) nap();
  });
  return 0;
}

// ---- memory ------------------------------------------------------------------------------------------------------

CUDA cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
  if (here() == nullptr) return kNoContext;
  std::string name;
  void* bytes = make_shared_memory(size, name);
  if (bytes == nullptr) return kNoMemory;
  *address = reinterpret_cast<std::uint64_t>(bytes);
  process().memory.add({*address, size, here()->ordinal, name, false});
  return 0;
}
CUDA cuMemFree_v2(std::uint64_t address) {
  const auto range = process().memory.take(address);
  if (!range || range->ordinal < 0 || range->opened) return kInvalid;
  if (is_open_elsewhere(range->name)) ++process().early_frees;
  return free_shared_memory(reinterpret_cast<void*>(address), range->size, range->name), 0;
}
CUDA cuMemGetAddressRange_v2(std::uint64_t* base, std::size_t* size, std::uint64_t address) {
  const auto range = process().memory.find(address);
  if (!range || range->ordinal < 0) return kNotFound;
  return *base = range->base, *size = range->size, 0;
}
CUDA cuMemcpyAsync(std::uint64_t to, std::uint64_t from, std::size_t size, void* stream) {
  Stream* found = stream_of(stream);
  if (found == nullptr) return kNoContext;
  found->give([=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
  return 0;
}
CUDA cuMemHostAlloc(void** bytes, std::size_t size, unsigned) {
  if (here() == nullptr) return kNoContext;
  *bytes = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  if (*bytes == nullptr) return kNoMemory;
  process().memory.add({reinterpret_cast<std::uint64_t>(*bytes), size, -1, "", false});
  return 0;
}
CUDA cuMemFreeHost(void* bytes) {
  if (!process().memory.take(reinterpret_cast<std::uint64_t>(bytes))) return kInvalid;
  return std::free(bytes), 0;
}
CUDA cuMemHostRegister_v2(void* bytes, std::size_t size, unsigned) {
  if (here() == nullptr) return kNoContext;
  if (size >> 20 >= static_cast<std::size_t>(setting("FAKE_CUDA_PINNABLE_MIB", 1 << 20))) return kNoMemory;
  const bool added = process().memory.add({reinterpret_cast<std::uint64_t>(bytes), size, -1, "", false});
  return added ? 0 : kAlreadyRegistered;
}
CUDA cuMemHostUnregister(void* bytes) {
  return process().memory.take(reinterpret_cast<std::uint64_t>(bytes)) ? 0 : kNotRegistered;
}

// Not CUDA's: how often memory was freed that another process had open, which is undefined there.
// Whether CUDA knows these bytes, as pinned memory of the host.
CUDA fake_is_pinned(const void* bytes) {
  const auto range = process().memory.find(reinterpret_cast<std::uint64_t>(bytes));
  return range && range->ordinal == -1;
}

CUDA fake_early_frees() { return process().early_frees; }

// ---- between processes -------------------------------------------------------------------------------------------

namespace {

void write_handle(void* out, const std::string& name, std::size_t size, int ordinal) {
  Handle handle{};
  std::snprintf(handle.name, sizeof handle.name, "%s", name.c_str());
  handle.size = size;
  handle.physical = process().devices[static_cast<std::size_t>(ordinal)];
  std::memset(out, 0, 64);
  std::memcpy(out, &handle, sizeof handle);
}

}  // namespace

struct Bytes64 {
  char bytes[64];
};

CUDA cuIpcGetMemHandle(void* out, std::uint64_t address) {
  const auto range = process().memory.find(address);
  if (setting("FAKE_CUDA_IPC", 1) == 0) return kUnsupported;
  if (!range || range->ordinal < 0 || range->opened) return kInvalid;
  return write_handle(out, range->name, range->size, range->ordinal), 0;
}
CUDA cuIpcOpenMemHandle_v2(std::uint64_t* address, Bytes64 in, unsigned) {
  Handle handle;
  std::memcpy(&handle, &in, sizeof handle);
  if (here() == nullptr) return kNoContext;
  if (handle.name[sizeof handle.name - 1] != '\0') return kInvalid;
  int fd = -1;
  void* bytes = open_shared_memory(handle.name, handle.size, &fd);
  if (bytes == nullptr) return kInvalid;
  *address = reinterpret_cast<std::uint64_t>(bytes);
  process().memory.add({*address, handle.size, here()->ordinal, handle.name, true, fd});
  return 0;
}
CUDA cuIpcCloseMemHandle(std::uint64_t address) {
  const auto range = process().memory.take(address);
  if (!range || !range->opened) return kInvalid;
  close_shared_memory(reinterpret_cast<void*>(address), range->size, range->fd);
  return 0;
}
CUDA cuIpcGetEventHandle(void* out, void* event) {
  const auto* one = static_cast<Event*>(event);
  if (one->name.empty()) return kInvalid;
  return write_handle(out, one->name, sizeof(EventWord), one->context->ordinal), 0;
}
CUDA cuIpcOpenEventHandle(void** event, Bytes64 in) {
  Handle handle;
  std::memcpy(&handle, &in, sizeof handle);
  if (here() == nullptr) return kNoContext;
  void* shared = open_shared_memory(handle.name, sizeof(EventWord));
  if (shared == nullptr) return kInvalid;
  auto made = std::make_unique<Event>(here());
  made->word = std::shared_ptr<EventWord>(static_cast<EventWord*>(shared), [](EventWord* word) { ::munmap(word, sizeof *word); });
  return *event = made.release(), 0;
}

// ---- kernels -----------------------------------------------------------------------------------------------------

CUDA cuModuleLoadData(void** module, const void* image) {
  std::uint32_t magic = 0;
  std::memcpy(&magic, image, sizeof magic);
  if (here() == nullptr) return kNoContext;
  if (magic != 0xba55ed50) return kInvalidImage;  // what nvcc's images begin with
  if (setting("FAKE_CUDA_KERNELS", 1) == 0) return kNoBinary;
  return *module = here(), 0;
}
CUDA cuModuleUnload(void*) { return here() != nullptr ? 0 : kNoContext; }
CUDA cuModuleGetFunction(void** function, void* module, const char* name) {
  const Kernel* found = find_kernel(name);
  if (here() != module || found == nullptr) return kNotFound;
  return *function = const_cast<Kernel*>(found), 0;
}
CUDA cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                    void* stream, void** arguments, void**) {
  Stream* found = stream_of(stream);
  if (found == nullptr) return kNoContext;
  const Arguments given(arguments);
  for (const std::uint64_t address : given.addresses) {
    const auto range = process().memory.find(address);
    if (!range || range->ordinal != here()->ordinal) return kInvalid;
  }
  return found->give([=] { run(*static_cast<const Kernel*>(function), blocks, threads, given); }), 0;
}
