#include "device/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "base/error.h"
#include "base/process.h"

namespace zmqpp::device {
namespace {

constexpr char kLibrary[] = "libcuda.so.1";
constexpr char kLibraryVariable[] = "ZMQPP_CUDA_LIBRARY";  // another file, or "none": as if there were no driver
constexpr int kOldest = 12000;

struct Found {
  Driver api{};
  bool works = false;
  int version = 0;
  std::string library, why_none;
  pid_t owner = current_pid();
};

// The first symbol that is missing, or empty.
std::string resolve_all(void* library, Driver& out) {
  std::string missing;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  find("cuInit", out.init);
  find("cuDriverGetVersion", out.driver_version);
  find("cuGetErrorName", out.error_name);
  find("cuGetErrorString", out.error_string);
  find("cuDeviceGetCount", out.device_count);
  find("cuDeviceGetName", out.device_name);
  find("cuDeviceGetUuid_v2", out.device_uuid);
  find("cuDeviceTotalMem_v2", out.device_memory);
  find("cuDevicePrimaryCtxRetain", out.primary_retain);
  find("cuDevicePrimaryCtxRelease_v2", out.primary_release);
  find("cuCtxPushCurrent_v2", out.context_push);
  find("cuCtxPopCurrent_v2", out.context_pop);
  find("cuCtxGetStreamPriorityRange", out.stream_priorities);
  find("cuStreamCreateWithPriority", out.stream_create);
  find("cuStreamDestroy_v2", out.stream_destroy);
  find("cuStreamQuery", out.stream_query);
  find("cuStreamWaitEvent", out.stream_wait_event);
  find("cuStreamIsCapturing", out.stream_capturing);
  find("cuThreadExchangeStreamCaptureMode", out.exchange_capture_mode);
  find("cuLaunchHostFunc", out.launch_host);
  find("cuEventCreate", out.event_create);
  find("cuEventDestroy_v2", out.event_destroy);
  find("cuEventRecord", out.event_record);
  find("cuEventQuery", out.event_query);
  find("cuMemAlloc_v2", out.memory_allocate);
  find("cuMemFree_v2", out.memory_free);
  find("cuMemGetAddressRange_v2", out.memory_range);
  find("cuMemcpyAsync", out.copy);
  find("cuMemHostAlloc", out.host_allocate);
  find("cuMemFreeHost", out.host_free);
  find("cuMemHostRegister_v2", out.host_register);
  find("cuMemHostUnregister", out.host_unregister);
  find("cuIpcGetMemHandle", out.ipc_export_memory);
  find("cuIpcOpenMemHandle_v2", out.ipc_open_memory);
  find("cuIpcCloseMemHandle", out.ipc_close_memory);
  find("cuModuleLoadData", out.module_load);
  find("cuModuleUnload", out.module_unload);
  find("cuModuleGetFunction", out.module_function);
  find("cuLaunchKernel", out.launch_kernel);
  return missing;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Why it does not work, or empty.
std::string open(const std::string& name, Found& found) {
  void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = ::dlerror();
    return "no CUDA driver: " + std::string(reason != nullptr ? reason : name + " does not open");
  }
  found.library = name;
  Driver& api = found.api;
  if (const std::string missing = resolve_all(library, api); !missing.empty()) {
    return "the CUDA driver in " + name + " has no " + missing + ": zmqpp needs one for CUDA 12 or later";
  }
  if (api.driver_version(&found.version) != kSuccess || found.version < kOldest) {
    return "the CUDA driver is for CUDA " + version_text(found.version) + ": zmqpp needs one for CUDA 12 or later";
  }
  if (const Result result = api.init(0); result != kSuccess) {
    const char* text = nullptr;
    api.error_string(result, &text);
    return "the CUDA driver does not start: " + std::string(text != nullptr ? text : "error " + std::to_string(result));
  }
  int devices = 0;
  if (api.device_count(&devices) != kSuccess || devices == 0) return "the CUDA driver sees no device";
  return "";
}

Found find_driver() {
  Found found;
  const char* asked = std::getenv(kLibraryVariable);
  const std::string name = asked != nullptr && *asked != '\0' ? asked : kLibrary;
  found.why_none = name == "none" ? "no CUDA driver: " + std::string(kLibraryVariable) + " is none" : open(name, found);
  found.works = found.why_none.empty();
  return found;
}

const Found& found() {
  static const Found once = find_driver();
  return once;
}

}  // namespace

bool is_usable() noexcept { return driver() != nullptr && current_pid() == found().owner; }

const Driver* driver() { return found().works ? &found().api : nullptr; }
std::string why_none() { return found().why_none; }
std::string library() { return found().library; }
int version() { return found().version; }

std::string text_of(Result result) {
  const char *name = nullptr, *text = nullptr;
  if (driver() != nullptr) {
    driver()->error_name(result, &name);
    driver()->error_string(result, &text);
  }
  if (name == nullptr) return "CUDA error " + std::to_string(result);
  return std::string(name) + (text != nullptr ? ": " + std::string(text) : "");
}

void check(Result result, const char* op, const std::string& what) {
  if (result == kSuccess) return;
  throw Error(Code::kDevice, op, what + ": " + text_of(result));
}

}  // namespace zmqpp::device
