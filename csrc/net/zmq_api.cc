#include "net/zmq_api.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

#include "base/error.h"

namespace zmqpp::net {
namespace {

ZmqApi api;
std::atomic<bool> loaded{false};
std::mutex loading;

void* open_library(const std::string& module_path) {
  if (!module_path.empty()) {
    // dlsym on the module searches the libraries it is linked to, libzmq among them.
    if (void* handle = ::dlopen(module_path.c_str(), RTLD_NOW | RTLD_NOLOAD)) return handle;
    if (void* handle = ::dlopen(module_path.c_str(), RTLD_NOW)) return handle;
  }
  if (void* handle = ::dlopen("libzmq.so.5", RTLD_NOW)) return handle;
  const char* reason = ::dlerror();
  throw Error(Code::kResource, "open",
              "no libzmq: neither the one pyzmq loads (" + module_path + ") nor libzmq.so.5 opens: " +
                  (reason != nullptr ? reason : "unknown reason") + "; reinstall pyzmq");
}

template <typename Function>
void resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function != nullptr) return;
  throw Error(Code::kResource, "open", std::string("the loaded libzmq has no ") + name + "; reinstall pyzmq");
}

void resolve_all(void* library, ZmqApi& out) {
  resolve(library, "zmq_version", out.version);
  resolve(library, "zmq_errno", out.last_errno);
  resolve(library, "zmq_strerror", out.strerror);
  resolve(library, "zmq_ctx_new", out.ctx_new);
  resolve(library, "zmq_ctx_set", out.ctx_set);
  resolve(library, "zmq_ctx_term", out.ctx_term);
  resolve(library, "zmq_socket", out.socket);
  resolve(library, "zmq_close", out.close);
  resolve(library, "zmq_setsockopt", out.setsockopt);
  resolve(library, "zmq_getsockopt", out.getsockopt);
  resolve(library, "zmq_bind", out.bind);
  resolve(library, "zmq_connect", out.connect);
  resolve(library, "zmq_disconnect", out.disconnect);
  resolve(library, "zmq_socket_monitor", out.socket_monitor);
  resolve(library, "zmq_poll", out.poll);
  resolve(library, "zmq_msg_init", out.msg_init);
  resolve(library, "zmq_msg_init_size", out.msg_init_size);
  resolve(library, "zmq_msg_init_data", out.msg_init_data);
  resolve(library, "zmq_msg_move", out.msg_move);
  resolve(library, "zmq_msg_close", out.msg_close);
  resolve(library, "zmq_msg_send", out.msg_send);
  resolve(library, "zmq_msg_recv", out.msg_recv);
  resolve(library, "zmq_msg_data", out.msg_data);
  resolve(library, "zmq_msg_size", out.msg_size);
  resolve(library, "zmq_msg_more", out.msg_more);
  resolve(library, "zmq_z85_decode", out.z85_decode);
}

void check_version(const ZmqApi& candidate) {
  int major = 0, minor = 0, patch = 0;
  candidate.version(&major, &minor, &patch);
  // Before 4.3.3 connections that never shook hands took messages (CVE-2020-15166).
  if (major == 4 && (minor > 3 || (minor == 3 && patch >= 3))) return;
  throw Error(Code::kUnsupported, "open",
              "libzmq " + std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch) +
                  " is loaded, zmqpp needs 4.3.3 or later; upgrade pyzmq");
}

}  // namespace

void load_zmq(const std::string& module_path) {
  const std::lock_guard lock(loading);
  if (loaded) return;
  ZmqApi candidate{};
  resolve_all(open_library(module_path), candidate);
  check_version(candidate);
  api = candidate;
  loaded = true;
}

const ZmqApi& zmq() {
  if (!loaded) throw Error(Code::kResource, "open", "libzmq is not loaded yet");
  return api;
}

std::string zmq_error_text() { return zmq().strerror(zmq().last_errno()); }

}  // namespace zmqpp::net
