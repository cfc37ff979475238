// What a dict of plain tensors of the CPU or of CUDA devices looks like, read through DLPack's C interface: a fraction of the time that asking
// Python for each tensor's dtype, shape, device and address takes. No torch headers: the interface is torch's own.
//
// Blocks? never. Thread: with the GIL. Errors: none; whatever is not plain is left to the Python side.
#include <cstring>
#include <string>

#include "bind/dlpack.h"
#include "bind/register.h"
#include "device/driver.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;

constexpr std::uint8_t kComplex = 5;

// Torch's functions, once they were given. Never freed: they live as long as torch does.
struct Torch {
  PyTypeObject* tensor = nullptr;
  int (*view)(void* tensor, dlpack::Tensor* out) = nullptr;
  PyObject* is_neg = nullptr;  // the method's name
};
Torch torch;

// False: this torch has another interface, or none.
bool use_tensor_type(const py::type& tensor, const py::capsule& exchange) {
  if (std::strcmp(exchange.name() == nullptr ? "" : exchange.name(), dlpack::kExchangeName) != 0) return false;
  const auto* api = exchange.get_pointer<const dlpack::Exchange>();
  if (api->version.major != dlpack::kMajor || api->view == nullptr) return false;
  torch = {reinterpret_cast<PyTypeObject*>(py::type(tensor).release().ptr()), api->view,
           PyUnicode_InternFromString("is_neg")};
  return true;
}

bool is_row_major(const dlpack::Tensor& tensor) {
  std::int64_t stride = 1;
  for (std::int32_t i = tensor.rank; i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

// Its bytes are not its values: a view that negates lazily. Only Python can tell.
bool is_negated(PyObject* tensor) {
  PyObject* const answer = PyObject_CallMethodNoArgs(tensor, torch.is_neg);
  if (answer == nullptr) PyErr_Clear();
  Py_XDECREF(answer);
  return answer != Py_False;
}

// By the engine itself; the rest goes through the CPU.
bool is_reached(const dlpack::Device& device) {
  return device.type == dlpack::kCpu || (device.type == dlpack::kCuda && device::driver() != nullptr);
}

// Sparse, nested, quantised, lazy, meta and wrapped tensors have no view, or no address. Conjugate ones are complex.
bool read_plain(PyObject* value, dlpack::Tensor& tensor) {
  if (Py_TYPE(value) != torch.tensor) return false;
  if (torch.view(value, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  return is_reached(tensor.device) && tensor.data != nullptr && tensor.type.code != kComplex &&
         tensor.type.lanes == 1 && tensor.type.bits % 8 == 0 && is_row_major(tensor) && !is_negated(value);
}

template <typename T>
void append(std::string& to, const T* values, std::size_t count) {
  to.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

bool append_key(std::string& to, PyObject* key) {
  if (!PyUnicode_CheckExact(key)) return false;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(key, &size);
  if (text == nullptr) {  // lone surrogates
    PyErr_Clear();
    return false;
  }
  append(to, &size, 1);
  to.append(text, static_cast<std::size_t>(size));
  return true;
}

// (address, size), on a device with its number behind.
PyObject* make_span(const dlpack::Tensor& tensor, std::size_t size) {
  const bool on_device = tensor.device.type != dlpack::kCpu;
  PyObject* const span = PyTuple_New(on_device ? 3 : 2);
  if (span == nullptr) throw py::error_already_set();
  PyTuple_SET_ITEM(span, 0, PyLong_FromVoidPtr(static_cast<char*>(tensor.data) + tensor.byte_offset));
  PyTuple_SET_ITEM(span, 1, PyLong_FromSize_t(size));
  if (on_device) PyTuple_SET_ITEM(span, 2, PyLong_FromLong(tensor.device.id));
  return span;
}

// (keys, types, devices and shapes as bytes, [span, ...]), or None unless all values are plain.
py::object describe_plain(const py::object& values) {
  if (torch.tensor == nullptr || !PyDict_CheckExact(values.ptr())) return py::none();
  std::string signature;
  py::list spans(static_cast<std::size_t>(PyDict_GET_SIZE(values.ptr())));
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t at = 0, i = 0;
  while (PyDict_Next(values.ptr(), &at, &key, &value) != 0) {
    const auto hold = py::reinterpret_borrow<py::object>(value);  // asking it may run Python
    dlpack::Tensor tensor{};
    if (i >= PyList_GET_SIZE(spans.ptr()) || !append_key(signature, key) || !read_plain(value, tensor)) return py::none();
    std::size_t size = tensor.type.bits / 8;
    for (std::int32_t d = 0; d < tensor.rank; ++d) size *= static_cast<std::size_t>(tensor.shape[d]);
    append(signature, &tensor.type, 1);
    append(signature, &tensor.device, 1);
    append(signature, &tensor.rank, 1);
    append(signature, tensor.shape, static_cast<std::size_t>(tensor.rank));
    PyList_SET_ITEM(spans.ptr(), i++, make_span(tensor, size));
  }
  if (i != PyList_GET_SIZE(spans.ptr())) return py::none();
  return py::make_tuple(py::bytes(signature), std::move(spans));
}

}  // namespace

void register_plain_dict(py::module_& m) {
  m.def("use_tensor_type", &use_tensor_type);
  m.def("describe_plain", &describe_plain);
}

}  // namespace zmqpp::bind
