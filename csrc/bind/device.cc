// What the CUDA driver of this machine says of itself, for `zmqpp doctor`.
#include "device/device.h"

#include "bind/register.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;

py::list devices() {
  py::list found;
  for (device::Ordinal i = 0; i < device::count_devices(); ++i) {
    py::dict row;
    row["name"] = device::name_of(i);
    row["uuid"] = device::uuid_of(i);
    row["memory_bytes"] = device::memory_of(i);
    found.append(row);
  }
  return found;
}

// Starts the driver in this process, and uses no device.
py::dict describe_cuda() {
  py::dict found;
  found["works"] = device::driver() != nullptr;
  found["why_none"] = device::why_none();
  found["library"] = device::library();
  found["version"] = device::version();
  found["devices"] = device::driver() != nullptr ? devices() : py::list();
  return found;
}

}  // namespace

void register_device(py::module_& m) { m.def("describe_cuda", &describe_cuda); }

}  // namespace zmqpp::bind
