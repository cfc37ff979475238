#include "engine/link.h"

#include <pybind11/stl.h>

#include <algorithm>

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

engine::LaneChoice read_lane(const std::string& name) {
  if (name == "auto") return engine::LaneChoice::kAuto;
  if (name == "tcp") return engine::LaneChoice::kSocket;
  if (name == "shm") return engine::LaneChoice::kShared;
  if (name == "cuda_ipc") return engine::LaneChoice::kDevice;
  throw Error(Code::kConfig, "open", "there is no lane " + name);
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
  std::string lane = "tcp";
  read(from, "lane", lane);
  options.lane = read_lane(lane);
  read(from, "shm_bytes", options.shm_bytes);
  read(from, "shm_hold_bytes", options.shm_hold_bytes);
  read(from, "spin_us", options.spin_us);
  read(from, "device", options.device);
  read(from, "pinned_bytes", options.pinned_bytes);
  read(from, "pinned_pool_bytes", options.pinned_pool_bytes);
  read(from, "device_ring_bytes", options.device_ring_bytes);
  read(from, "checksum", options.checksum);
  read(from, "max_control_bytes", options.limits.max_control_bytes);
  read(from, "max_dict_bytes", options.limits.max_dict_bytes);
  read(from, "heartbeat_s", options.heartbeat_s);
  read(from, "peer_timeout_s", options.peer_timeout_s);
  read(from, "bear_silence", options.bear_silence);
  read(from, "handshake_s", options.handshake_s);
  read(from, "curve_public", options.keys.public_key);
  read(from, "curve_secret", options.keys.secret_key);
  return options;
}

void reserve(Link& link, std::size_t bytes, const Deadline& deadline, double timeout_s) {
  if (link.reserve(bytes, Deadline::after(0))) return;
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
  const auto* const bytes = static_cast<const std::uint8_t*>(view.ptr);
  const engine::SendOptions send{.route = static_cast<wire::Route>(route), .tag = tag, .deadline = deadline};
  if (link.try_send_control(bytes, size, send)) return;
  reserve(link, size, deadline, timeout_s);
  link.send_control(bytes, size, send);
}

engine::Span read_span(const py::handle& span) {
  const Py_ssize_t parts = PyTuple_Check(span.ptr()) ? PyTuple_GET_SIZE(span.ptr()) : 0;
  if (parts != 2 && parts != 3) throw py::type_error("(address, size) or (address, size, device) expected");
  void* address = PyLong_AsVoidPtr(PyTuple_GET_ITEM(span.ptr(), 0));
  const std::size_t size = PyLong_AsSize_t(PyTuple_GET_ITEM(span.ptr(), 1));
  const long ordinal = parts == 3 ? PyLong_AsLong(PyTuple_GET_ITEM(span.ptr(), 2)) : engine::Span::kHost;
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return {static_cast<const std::uint8_t*>(address), size, static_cast<device::Ordinal>(ordinal)};
}

// The manifest, then the payload's buffers. Empty ones take no place.
std::vector<engine::Span> read_body(const py::bytes& manifest, const py::list& spans) {
  std::vector<engine::Span> body;
  body.reserve(1 + spans.size());
  const std::string_view text = manifest;
  body.push_back({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  for (const py::handle span : spans) {
    if (const engine::Span read = read_span(span); read.size > 0) body.push_back(read);
  }
  return body;
}

using Streams = std::vector<std::pair<int, std::uintptr_t>>;  // device, its current stream

engine::Flight::Streams read_streams(const Streams& streams) {
  engine::Flight::Streams read;
  for (const auto& [ordinal, stream] : streams) read.emplace_back(ordinal, reinterpret_cast<device::StreamHandle>(stream));
  return read;
}

engine::FlightPtr begin_flight(const std::vector<engine::Span>& body, const Streams& streams) {
  for (const engine::Span& span : body) {
    const auto is_its = [&](const auto& one) { return one.first == span.ordinal; };
    if (span.ordinal != engine::Span::kHost && std::none_of(streams.begin(), streams.end(), is_its)) {
      throw py::value_error("no stream is given for device " + std::to_string(span.ordinal));
    }
  }
  return engine::is_on_device(body) ? engine::Flight::begin(read_streams(streams)) : nullptr;
}

engine::SendTicketPtr queue_dict(Link& link, const std::vector<engine::Span>& body, std::uint64_t tag, double timeout_s,
                                 engine::FlightPtr flight = nullptr) {
  const Deadline deadline = Deadline::after(timeout_s);
  reserve(link, link.reservation(body), deadline, timeout_s);
  const engine::SendOptions options{.tag = tag, .deadline = deadline, .flight = std::move(flight)};
  if (!options.flight) return link.send_dict(body, options);
  return without_gil([&] { return link.send_dict(body, options); });  // it may write what waits in front
}

constexpr std::size_t kBriefBytes = 128u << 10;  // copied without letting other Python threads in

// None: the sources may be overwritten already. Else the owners of the spans must outlive the ticket's settling.
py::object send_dict(Link& link, const py::bytes& manifest, const py::list& spans, std::uint64_t tag, double timeout_s,
                     bool at_once) {
  const std::vector<engine::Span> body = read_body(manifest, spans);
  if (engine::is_on_device(body)) throw py::value_error("a dict with tensors on devices needs their streams");
  bool sent = false;
  if (engine::payload_size(body) <= kBriefBytes) {
    sent = link.try_send_dict(body, tag);
  } else if (at_once) {
    sent = without_gil([&] { return link.try_send_dict(body, tag); });
  }
  if (sent) return py::none();
  return py::cast(queue_dict(link, body, tag, timeout_s));
}

// The copies wait for `streams`, the caller does not. The owners of the spans must outlive the ticket's settling.
engine::SendTicketPtr send_device_dict(Link& link, const py::bytes& manifest, const py::list& spans, std::uint64_t tag,
                                       double timeout_s, const Streams& streams) {
  const std::vector<engine::Span> body = read_body(manifest, spans);
  return queue_dict(link, body, tag, timeout_s, begin_flight(body, streams));
}

py::object as_tuple(const engine::Dict& dict) {
  return py::make_tuple(py::bytes(dict.manifest), dict.block, dict.tag, dict.epoch);
}

py::object recv_dict(Link& link, double timeout_s) {
  const std::shared_ptr<engine::Inbox> inbox = link.inbox();
  if (std::optional<engine::Dict> dict = inbox->try_receive()) return as_tuple(*dict);
  const engine::RecvTicketPtr ticket = inbox->post();
  std::optional<engine::Dict> dict;
  try {
    wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& slice) {
      dict = inbox->wait(ticket, slice);
      return dict.has_value();
    });
  } catch (...) {
    inbox->cancel(ticket);
    throw;
  }
  if (dict) return as_tuple(*dict);
  inbox->cancel(ticket);
  return py::none();
}

py::object recv_control(Link& link, double timeout_s) {
  std::optional<engine::Control> control;
  const std::shared_ptr<engine::Inbox> inbox = link.inbox();
  const bool came = wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& slice) {
    control = inbox->take_control(slice);
    return control.has_value();
  });
  if (!came) return py::none();
  const py::bytes body(reinterpret_cast<const char*>(engine::body_of(control->frame)), engine::body_size(control->frame));
  return py::make_tuple(body, static_cast<int>(control->route), control->tag, control->epoch);
}

// A ticket counts in the inbox it was posted in, also when the link has another one by now.
struct PostedReceive {
  std::shared_ptr<Link> link;  // whose statistics the inbox writes
  std::shared_ptr<engine::Inbox> inbox;
  engine::RecvTicketPtr ticket;
};

PostedReceive post_dict(const std::shared_ptr<Link>& link) {
  std::shared_ptr<engine::Inbox> inbox = link->inbox();
  engine::RecvTicketPtr ticket = inbox->post();
  return {link, std::move(inbox), std::move(ticket)};
}

py::object wait_dict(const PostedReceive& posted, double timeout_s) {
  posted.link->inbox();  // not after a fork
  std::optional<engine::Dict> dict;
  const bool came = wait_in_slices(Deadline::after(timeout_s), [&](const Deadline& slice) {
    dict = posted.inbox->wait(posted.ticket, slice);
    return dict.has_value();
  });
  return came ? as_tuple(*dict) : py::none();
}

bool is_dict_ready(const PostedReceive& posted) {
  posted.link->inbox();
  return posted.inbox->is_ready(posted.ticket);
}

void cancel_dict(const PostedReceive& posted) {
  posted.link->inbox();
  posted.inbox->cancel(posted.ticket);
}

void wait_peers(Link& link, double timeout_s) {
  const Deadline deadline = Deadline::after(timeout_s);
  const auto receiving = [&](const Deadline& slice) { return link.wait_receive_peer(slice); };
  const auto sending = [&](const Deadline& slice) { return link.wait_send_peer(slice); };
  if (!wait_in_slices(deadline, receiving)) throw link.peer_timeout(false, timeout_s);
  if (!wait_in_slices(deadline, sending) && !link.is_receiver_there()) throw link.peer_timeout(true, timeout_s);
}

// [(address, reason), …]
py::list take_refusals(Link& link) {
  py::list out;
  for (const net::Refusal& refusal : link.take_refusals()) out.append(py::make_tuple(refusal.address, refusal.reason));
  return out;
}

void raise_if(const std::optional<Error>& error) {
  if (error) throw *error;
}

}  // namespace

void register_link(py::module_& m) {
  py::class_<PostedReceive>(m, "RecvTicket")
      .def("wait", &wait_dict)
      .def("is_ready", &is_dict_ready)
      .def("cancel", &cancel_dict);
  py::class_<Link, std::shared_ptr<Link>>(m, "Link")
      .def(py::init([](const py::dict& options) { return engine::open_link(read_options(options)); }))
      .def("bound", &Link::bound)
      .def("send_control", &send_control)
      .def("send_dict", [](Link& link, const py::bytes& manifest, const py::list& spans, std::uint64_t tag,
                           double timeout_s) { return send_dict(link, manifest, spans, tag, timeout_s, false); })
      .def("send_dict_now", [](Link& link, const py::bytes& manifest, const py::list& spans, std::uint64_t tag,
                               double timeout_s) { return send_dict(link, manifest, spans, tag, timeout_s, true); })
      .def("send_device_dict", &send_device_dict)
      .def("recv_dict", &recv_dict)
      .def("recv_control", &recv_control)
      .def("post_dict", &post_dict)
      .def("wait_peers", &wait_peers)
      .def("receive_trouble", &Link::receive_trouble)
      .def("reopen_send", [](Link& link, double timeout_s) { link.reopen_send(Deadline::after(timeout_s)); },
           py::call_guard<py::gil_scoped_release>())
      .def("reopen_receive", &Link::reopen_receive, py::call_guard<py::gil_scoped_release>())
      .def("use_device", &Link::use_device, py::call_guard<py::gil_scoped_release>())
      .def("set_epoch", &Link::set_epoch)
      .def("lane_reason", &Link::lane_reason)
      .def("take_refusals", &take_refusals)
      .def("key_trouble", &Link::key_trouble)
      .def("notify_fd", [](Link& link) { return link.notice().fd(); })
      .def("arm_notify", &Link::arm)
      .def("drain_notify", [](Link& link) { link.notice().drain(); })
      .def("stats", &Link::stats)
      .def("check_send", [](const Link& link) { raise_if(link.send_error()); })
      .def("check_receive", [](const Link& link) { raise_if(link.receive_error()); })
      .def("is_closed", &Link::is_closed)
      .def("close", &Link::close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace zmqpp::bind
