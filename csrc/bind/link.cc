#include "engine/link.h"

#include <pybind11/stl.h>

#include "bind/register.h"
#include "bind/wait.h"
#include "engine/frame.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;
using engine::Link;
using engine::Options;

template <typename T>
void read(const py::dict& from, const char* name, T& into) {
  if (from.contains(name)) into = from[name].cast<T>();
}

// Keys are the fields of engine::Options; zmqpp/transport.py fills them from TransportConfig.
Options read_options(const py::dict& from) {
  Options options;
  read(from, "bind", options.bind);
  read(from, "connect", options.connect);
  read(from, "name", options.name);
  read(from, "previous", options.previous);
  read(from, "next", options.next);
  read(from, "expect", options.expect);
  read(from, "rank", options.rank);
  read(from, "world_size", options.world_size);
  int relay = 0;
  read(from, "relay", relay);
  options.relay = static_cast<engine::Relay>(relay);
  read(from, "chunk_bytes", options.chunk_bytes);
  read(from, "inline_bytes", options.inline_bytes);
  read(from, "pool_chunks", options.pool_chunks);
  read(from, "queue_bytes", options.queue_bytes);
  read(from, "queue_items", options.queue_items);
  read(from, "receive_limit_bytes", options.receive_limit_bytes);
  read(from, "max_control_bytes", options.limits.max_control_bytes);
  read(from, "max_dict_bytes", options.limits.max_dict_bytes);
  read(from, "heartbeat_s", options.heartbeat_s);
  read(from, "peer_timeout_s", options.peer_timeout_s);
  read(from, "handshake_s", options.handshake_s);
  return options;
}

void reserve(Link& link, std::size_t bytes, const Deadline& deadline, double timeout_s) {
  if (!wait_in_slices(deadline, [&](const Deadline& slice) { return link.reserve(bytes, slice); })) {
    throw link.queue_timeout(timeout_s);
  }
}

void send_control(Link& link, const py::buffer& body, int route, std::uint64_t tag, double timeout_s) {
  const py::buffer_info view = body.request();
  const auto size = static_cast<std::size_t>(view.size * view.itemsize);
  const std::size_t limit = link.options().limits.max_control_bytes;
  if (size > limit) {
    throw Error(Code::kConfig, "send_control",
                "a body of " + std::to_string(size) + " bytes, the limit is " + std::to_string(limit));
  }
  const Deadline deadline = Deadline::after(timeout_s);
  reserve(link, size, deadline, timeout_s);
  link.send_control(static_cast<const std::uint8_t*>(view.ptr), size,
                    {.route = static_cast<wire::Route>(route), .tag = tag, .deadline = deadline});
}

// `spans`: (address, size) of each buffer. Their owners must outlive the ticket's settling.
engine::SendTicketPtr send_dict(Link& link, const std::string& manifest,
                                const std::vector<std::pair<std::uintptr_t, std::size_t>>& spans, std::uint64_t tag,
                                double timeout_s) {
  std::vector<engine::Span> payload;
  payload.reserve(spans.size());
  for (const auto& [address, size] : spans) {
    if (size > 0) payload.push_back({reinterpret_cast<const std::uint8_t*>(address), size});
  }
  const Deadline deadline = Deadline::after(timeout_s);
  reserve(link, link.reservation(manifest, payload), deadline, timeout_s);
  return link.send_dict(manifest, std::move(payload), {.tag = tag, .deadline = deadline});
}

py::object recv_control(Link& link, double timeout_s) {
  std::optional<engine::Control> control;
  engine::Inbox& inbox = link.inbox();
  const bool came = wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& slice) {
    control = inbox.take_control(slice);
    return control.has_value();
  });
  if (!came) return py::none();
  const py::bytes body(reinterpret_cast<const char*>(engine::body_of(control->frame)), engine::body_size(control->frame));
  return py::make_tuple(body, static_cast<int>(control->route), control->tag, control->epoch);
}

py::object wait_dict(Link& link, const engine::RecvTicketPtr& ticket, double timeout_s) {
  std::optional<engine::Dict> dict;
  engine::Inbox& inbox = link.inbox();
  const bool came = wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& slice) {
    dict = inbox.wait(ticket, slice);
    return dict.has_value();
  });
  if (!came) return py::none();
  return py::make_tuple(py::bytes(dict->manifest), dict->block, dict->tag, dict->epoch);
}

void wait_peers(Link& link, double timeout_s) {
  const Deadline deadline = Deadline::after(timeout_s);
  const auto receiving = [&](const Deadline& slice) { return link.wait_receive_peer(slice); };
  const auto sending = [&](const Deadline& slice) { return link.wait_send_peer(slice); };
  if (!wait_in_slices(deadline, receiving)) throw link.peer_timeout(false, timeout_s);
  if (!wait_in_slices(deadline, sending)) throw link.peer_timeout(true, timeout_s);
}

void raise_if(const std::optional<Error>& error) {
  if (error) throw *error;
}

}  // namespace

void register_link(py::module_& m) {
  py::class_<engine::RecvTicket, engine::RecvTicketPtr>(m, "RecvTicket");
  py::class_<Link, std::shared_ptr<Link>>(m, "Link")
      .def(py::init([](const py::dict& options) { return engine::open_link(read_options(options)); }))
      .def("bound", &Link::bound)
      .def("send_control", &send_control)
      .def("send_dict", &send_dict)
      .def("recv_control", &recv_control)
      .def("post_dict", [](Link& link) { return link.inbox().post(); })
      .def("is_dict_ready", [](Link& link, const engine::RecvTicketPtr& t) { return link.inbox().is_ready(t); })
      .def("wait_dict", &wait_dict)
      .def("cancel_dict", [](Link& link, const engine::RecvTicketPtr& t) { link.inbox().cancel(t); })
      .def("wait_peers", &wait_peers)
      .def("receive_trouble", &Link::receive_trouble)
      .def("set_epoch", &Link::set_epoch)
      .def("stats", &Link::stats)
      .def("check_send", [](const Link& link) { raise_if(link.send_error()); })
      .def("check_receive", [](const Link& link) { raise_if(link.receive_error()); })
      .def("is_closed", &Link::is_closed)
      .def("close", &Link::close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace zmqpp::bind
