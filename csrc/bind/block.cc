#include "bind/register.h"
#include "memory/receive_block.h"

namespace zmqpp::bind {

namespace py = pybind11;
using memory::ReceiveBlock;

// Writable bytes through the buffer protocol: tensors and arrays made from it keep it, and so its memory, alive.
void register_block(py::module_& m) {
  py::class_<ReceiveBlock, std::shared_ptr<ReceiveBlock>>(m, "Block", py::buffer_protocol())
      .def_buffer([](ReceiveBlock& block) {
        return py::buffer_info(block.bytes(), sizeof(std::uint8_t), py::format_descriptor<std::uint8_t>::format(),
                               static_cast<py::ssize_t>(block.size()));
      })
      .def("__len__", &ReceiveBlock::size);
  m.def("make_block", &ReceiveBlock::make, py::arg("size"));
  m.def("cached_receive_bytes", &memory::cached_receive_bytes);
  m.def("drop_cached_receive_blocks", &memory::drop_cached_receive_blocks);
}

}  // namespace zmqpp::bind
