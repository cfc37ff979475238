#include <pybind11/stl.h>

#include "bind/register.h"
#include "bind/wait.h"
#include "engine/ticket.h"

namespace zmqpp::bind {

namespace py = pybind11;
using engine::SendTicket;

namespace {

void hold_back(const SendTicket& ticket, int ordinal, std::uintptr_t stream) {
  if (ticket.flight()) ticket.flight()->hold_back(ordinal, reinterpret_cast<device::StreamHandle>(stream));
}

}  // namespace

void register_tickets(py::module_& m) {
  py::class_<SendTicket, std::shared_ptr<SendTicket>>(m, "SendTicket")
      .def("is_copied", &SendTicket::is_copied)
      .def("is_sent", &SendTicket::is_sent)
      .def("is_settled", &SendTicket::is_settled)
      .def("is_abandoned", &SendTicket::is_abandoned)
      .def("is_over", &SendTicket::is_over)
      .def("hold_back", &hold_back)
      .def("wait_started",
           [](SendTicket& ticket, double timeout_s) {
             return wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& d) { return ticket.wait_started(d); });
           })
      .def("wait_copied",
           [](SendTicket& ticket, double timeout_s) {
             return wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& d) { return ticket.wait_copied(d); });
           })
      .def("wait_sent", [](SendTicket& ticket, double timeout_s) {
        return wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& d) { return ticket.wait_sent(d); });
      });
}

}  // namespace zmqpp::bind
