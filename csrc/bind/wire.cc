// The wire format's reader and writer, for the tests and tools written in Python.
#include "base/align.h"
#include "base/crc32c.h"
#include "bind/register.h"
#include "net/zmq_api.h"
#include "wire/head.h"
#include "wire/hello.h"
#include "wire/manifest.h"
#include "wire/ring.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;

py::bytes write_head(int kind, int route, std::uint32_t flags, std::uint32_t epoch, std::uint64_t session,
                     std::uint64_t sequence, std::uint64_t tag, std::uint64_t offset, std::uint64_t total,
                     std::uint32_t body_size) {
  wire::HeadBytes out{};
  wire::write_head({static_cast<wire::Kind>(kind), static_cast<wire::Route>(route), flags, epoch, session, sequence,
                    tag, offset, total, body_size},
                   out.data());
  return py::bytes(reinterpret_cast<const char*>(out.data()), out.size());
}

py::dict read_head(const std::string& frame) {
  const wire::Head head = wire::read_head(frame.data(), frame.size(), wire::Limits{});
  py::dict out;
  out["kind"] = static_cast<int>(head.kind);
  out["route"] = static_cast<int>(head.route);
  out["flags"] = head.flags;
  out["epoch"] = head.epoch;
  out["session"] = head.session;
  out["sequence"] = head.sequence;
  out["tag"] = head.tag;
  out["offset"] = head.offset;
  out["total"] = head.total;
  out["body_size"] = head.body_size;
  return out;
}

}  // namespace

void register_wire(py::module_& m) {
  m.attr("WIRE_VERSION") = wire::kVersion;
  m.attr("HEAD_SIZE") = wire::kHeadSize;
  m.attr("ALIGN") = kAlign;
  m.attr("FLAG_INLINE") = wire::kFlagInline;
  m.attr("FLAG_CHECKED") = wire::kFlagChecked;
  m.attr("SLOTS") = wire::kSlots;
  m.attr("MAX_MANIFEST_BYTES") = wire::kMaxManifestBytes;
  m.attr("MAX_INLINE_BYTES") = wire::kMaxInlineBytes;
  m.attr("MAX_CHUNK_BYTES") = wire::kMaxChunkBytes;
  m.attr("MAX_CONTROL_BYTES") = wire::kMaxControlBytes;
  m.attr("MAX_DICT_BYTES") = wire::kMaxDictBytes;
  m.def("load_zmq", &net::load_zmq, py::arg("module_path"));
  m.def("check_manifest", [](const std::string& bytes) { wire::check_manifest(bytes.data(), bytes.size()); });
  m.def("write_hello", [](std::int64_t rank, std::int64_t world_size, const std::string& name) {
    return py::bytes(wire::write_hello({.rank = rank, .world_size = world_size, .name = name}));
  });
  m.def("write_checksum", [](std::string frame) {
    if (frame.size() < wire::kHeadSize) throw py::value_error("a frame is at least 64 bytes long");
    wire::write_checksum(reinterpret_cast<std::uint8_t*>(frame.data()), frame.size());
    return py::bytes(frame);
  });
  m.def("crc32c", [](const std::string& bytes) { return crc32c(0, bytes.data(), bytes.size()); });
  m.def("crc32c_implementation", &crc32c_implementation);
  m.def("write_head", &write_head, py::arg("kind"), py::arg("route") = 0, py::arg("flags") = 0, py::arg("epoch") = 0,
        py::arg("session") = 0, py::arg("sequence") = 0, py::arg("tag") = 0, py::arg("offset") = 0,
        py::arg("total") = 0, py::arg("body_size") = 0);
  m.def("read_head", &read_head, py::arg("frame"));
}

}  // namespace zmqpp::bind
