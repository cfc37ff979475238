// Received memory as Python sees it: bytes through the buffer protocol, tensors through DLPack.
#include <array>
#include <vector>

#include "bind/dlpack.h"
#include "bind/register.h"
#include "memory/receive_block.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;
using memory::ReceiveBlock;
using BlockPtr = std::shared_ptr<ReceiveBlock>;

// Where the tensors of a dict lie in its block, and what they are: parsed once for all dicts that look alike.
struct Layout {
  struct Buffer {
    std::size_t offset;
    std::size_t size;
    dlpack::DataType type;
    std::vector<std::int64_t> dims;
    std::vector<std::int64_t> strides;  // in elements, row major
  };
  std::vector<Buffer> buffers;
};

Layout::Buffer make_buffer(std::size_t offset, int code, int bits, const std::vector<std::int64_t>& dims) {
  Layout::Buffer buffer{offset, static_cast<std::size_t>(bits) / 8,
                        {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1}, dims, dims};
  std::int64_t stride = 1;
  for (std::size_t i = dims.size(); i-- > 0;) {
    if (dims[i] < 0) throw py::value_error("a dimension below 0");
    buffer.strides[i] = stride;
    if (__builtin_mul_overflow(stride, dims[i], &stride)) throw py::value_error("dimensions beyond 64 bits");
  }
  if (__builtin_mul_overflow(buffer.size, static_cast<std::size_t>(stride), &buffer.size)) {
    throw py::value_error("a size beyond 64 bits");
  }
  return buffer;
}

Layout make_layout(const std::vector<std::tuple<std::size_t, int, int, std::vector<std::int64_t>>>& given) {
  Layout layout;
  for (const auto& [offset, code, bits, dims] : given) layout.buffers.push_back(make_buffer(offset, code, bits, dims));
  return layout;
}

// A tensor's hold on its block: freed by whoever drops the tensor, on whatever thread, with or without the GIL.
struct View {
  dlpack::ManagedTensor managed;
  BlockPtr block;
  std::vector<std::int64_t> dims;  // shape, then strides

  View(BlockPtr from, const Layout::Buffer& buffer) : block(std::move(from)), dims(buffer.dims) {
    dims.insert(dims.end(), buffer.strides.begin(), buffer.strides.end());
    const auto rank = static_cast<std::int32_t>(buffer.dims.size());
    managed.tensor = {block->bytes() + buffer.offset, {dlpack::kCpu, 0}, rank, buffer.type, dims.data(),
                      dims.data() + rank, 0};
    managed.context = this;
    managed.deleter = [](dlpack::ManagedTensor* self) { delete static_cast<View*>(self->context); };
  }
};

// A capsule nobody turned into a tensor.
void drop_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, dlpack::kCapsuleName) == 0) return;
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::kCapsuleName));
  managed->deleter(managed);
}

py::list capsules(const BlockPtr& block, const Layout& layout) {
  py::list out(layout.buffers.size());
  for (std::size_t i = 0; i < layout.buffers.size(); ++i) {
    const Layout::Buffer& buffer = layout.buffers[i];
    if (buffer.offset > block->size() || buffer.size > block->size() - buffer.offset) {
      throw py::value_error("a tensor outside its block");
    }
    if (!block->remote().empty()) throw py::value_error("some of this block is on a device");
    auto* view = new View(block, buffer);
    PyObject* capsule = PyCapsule_New(&view->managed, dlpack::kCapsuleName, drop_capsule);
    if (capsule == nullptr) {
      delete view;
      throw py::error_already_set();
    }
    PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), capsule);
  }
  return out;
}

}  // namespace

// Writable bytes through the buffer protocol: tensors and arrays made from it keep it, and so its memory, alive.
void register_block(py::module_& m) {
  py::class_<Layout>(m, "Layout").def(py::init(&make_layout));
  py::class_<ReceiveBlock, BlockPtr>(m, "Block", py::buffer_protocol())
      .def_buffer([](ReceiveBlock& block) {
        return py::buffer_info(block.bytes(), sizeof(std::uint8_t), py::format_descriptor<std::uint8_t>::format(),
                               static_cast<py::ssize_t>(block.size()));
      })
      .def("__len__", &ReceiveBlock::size)
      .def("is_remote", [](const ReceiveBlock& block) { return !block.remote().empty(); })
      .def("capsules", &capsules);
  m.def("make_block", &ReceiveBlock::make, py::arg("size"));
  m.def("cached_receive_bytes", &memory::cached_receive_bytes);
  m.def("drop_cached_receive_blocks", &memory::drop_cached_receive_blocks);
  m.def("receive_allocations", &memory::receive_allocations);
}

}  // namespace zmqpp::bind
