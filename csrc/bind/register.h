// One function per class the extension exposes; module.cc lists them.
//
// Thread: called once, at import, with the GIL held.
#pragma once

#include <pybind11/pybind11.h>

namespace zmqpp::bind {

void register_errors(pybind11::module_& m);
void register_wire(pybind11::module_& m);
void register_block(pybind11::module_& m);
void register_tickets(pybind11::module_& m);
void register_link(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_plain_dict(pybind11::module_& m);
void register_pack(pybind11::module_& m);

}  // namespace zmqpp::bind
