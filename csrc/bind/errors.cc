// The one place where engine errors become Python exceptions.
#include <array>

#include "base/error.h"
#include "bind/register.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;

struct Row {
  Code code;
  const char* name;        // shows in Python as `error.code`
  const char* class_name;  // in zmqpp.errors
};

constexpr std::array kTable{
    Row{Code::kConfig, "config", "ConfigError"},
    Row{Code::kUnsupported, "unsupported", "UnsupportedError"},
    Row{Code::kClosed, "closed", "ClosedError"},
    Row{Code::kConnect, "connect", "ConnectError"},
    Row{Code::kAddressInUse, "address_in_use", "ConnectError"},
    Row{Code::kAddressUnavailable, "address_unavailable", "ConnectError"},
    Row{Code::kPeerLost, "peer_lost", "PeerLostError"},
    Row{Code::kPeerClosed, "peer_closed", "PeerLostError"},
    Row{Code::kConnectTimeout, "connect_timeout", "ConnectTimeout"},
    Row{Code::kSendTimeout, "send_timeout", "SendTimeout"},
    Row{Code::kRecvTimeout, "recv_timeout", "RecvTimeout"},
    Row{Code::kPoolTimeout, "pool_timeout", "PoolTimeout"},
    Row{Code::kMalformed, "malformed", "MalformedError"},
    Row{Code::kVersion, "version", "VersionError"},
    Row{Code::kSequence, "sequence", "SequenceError"},
    Row{Code::kChecksum, "checksum", "ChecksumError"},
    Row{Code::kResource, "resource", "ResourceError"},
    Row{Code::kSharedMemory, "shared_memory", "SharedMemoryError"},
    Row{Code::kDevice, "device", "DeviceError"},
    Row{Code::kPinned, "pinned_memory", "PinnedMemoryError"},
};
static_assert(kTable.size() == static_cast<std::size_t>(Code::kCount_), "every code needs a row");

const Row& row_of(Code code) {
  for (const Row& row : kTable) {
    if (row.code == code) return row;
  }
  return kTable[0];
}

// A peer's name may hold any bytes.
py::str text(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

void raise(const Error& error) {
  const Row& row = row_of(error.code());
  const py::object type = py::module_::import("zmqpp.errors").attr(row.class_name);
  const py::object instance = type(text(error.what()), py::arg("op") = error.op(), py::arg("code") = row.name);
  PyErr_SetObject(type.ptr(), instance.ptr());
}

}  // namespace

void register_errors(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      raise(error);
    }
  });
  m.def("error_table", [] {
    py::dict table;
    for (const Row& row : kTable) table[row.name] = row.class_name;
    return table;
  });
  m.def("raise_code", [](int index) {
    if (index < 0 || index >= static_cast<int>(Code::kCount_)) throw py::index_error("no such code");
    throw Error(static_cast<Code>(index), "test", "raised on request");
  });
}

}  // namespace zmqpp::bind
