// What the CUDA driver of this machine says of itself, for `zmqpp doctor`; and the way of received dicts to a device.
#include "device/device.h"

#include <pybind11/stl.h>

#include <tuple>

#include "bind/register.h"
#include "bind/wait.h"
#include "engine/arrival.h"

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

using BlockPtr = std::shared_ptr<memory::ReceiveBlock>;
using Targets = std::vector<std::tuple<std::uintptr_t, std::size_t, std::size_t>>;  // address, offset in the block, size

using ArrivalPtr = std::shared_ptr<engine::Arrival>;

ArrivalPtr start_arrival(const BlockPtr& block, const Targets& given, int ordinal, std::uintptr_t arrivals) {
  std::vector<engine::Target> targets;
  for (const auto& [address, offset, size] : given) targets.push_back({reinterpret_cast<void*>(address), offset, size});
  return without_gil([&] {  // memory that is not pinned makes CUDA wait for it
    return engine::Arrival::start(block, targets, ordinal, reinterpret_cast<device::StreamHandle>(arrivals));
  });
}

void hold_back_for(const engine::Arrival& arrival, std::uintptr_t current) {
  arrival.hold_back(reinterpret_cast<device::StreamHandle>(current));
}

// Of the calling thread: 2, relaxed, lets it allocate while another one captures a graph. Returns the one before.
int exchange_capture_mode(int mode) {
  if (device::driver() != nullptr) device::driver()->exchange_capture_mode(&mode);
  return mode;
}

}  // namespace

void register_device(py::module_& m) {
  m.def("describe_cuda", &describe_cuda);
  py::class_<engine::Arrival, ArrivalPtr>(m, "Arrival")
      .def("finish", &engine::Arrival::finish)
      .def("hold_back", &hold_back_for)
      .def("is_over", &engine::Arrival::is_over);
  m.def("start_arrival", &start_arrival);
  m.def("exchange_capture_mode", &exchange_capture_mode);
}

}  // namespace zmqpp::bind
