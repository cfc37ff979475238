#include "bind/register.h"

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The transport engine: use zmqpp.transport instead.";
  zmqpp::bind::register_errors(m);
  zmqpp::bind::register_wire(m);
  zmqpp::bind::register_block(m);
  zmqpp::bind::register_tickets(m);
  zmqpp::bind::register_link(m);
  zmqpp::bind::register_device(m);
  zmqpp::bind::register_plain_dict(m);
  zmqpp::bind::register_pack(m);
}
