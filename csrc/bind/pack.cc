// Packing tensors that Python describes by address and size: in CPU memory, and on a CUDA device.
//
// Blocks? pack and unpack as long as it takes, without the GIL. Thread: any. Errors: ConfigError: an unknown word; whether an
//   address holds what is said of it is for the caller to know.
#include <cstdint>

#include "base/error.h"
#include "bind/register.h"
#include "bind/wait.h"
#include "pack/arithmetic.h"
#include "pack/on_device.h"
#include "pack/pack.h"

namespace zmqpp::bind {
namespace {

namespace py = pybind11;
using pack::Format;
using pack::Number;
using pack::Shape;

Number number_of(const std::string& word) {
  if (word == "float32") return Number::kFloat32;
  if (word == "float16") return Number::kFloat16;
  if (word == "bfloat16") return Number::kBfloat16;
  throw Error(Code::kConfig, "pack", "numbers of " + word + " cannot be packed: only float32, float16 and bfloat16");
}

Format format_of(const std::string& word) {
  if (word == "fp8") return Format::kFp8;
  if (word == "int8") return Format::kInt8;
  throw Error(Code::kConfig, "pack", "there is no format " + word + ": only fp8 and int8");
}

template <typename T>
T* at(std::uint64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

void pack_here(const std::string& number, const std::string& format, std::size_t rows, std::size_t columns,
               std::uint64_t numbers, std::uint64_t codes, std::uint64_t scales) {
  const Number n = number_of(number);
  const Format f = format_of(format);
  without_gil([&] { return pack::pack(n, f, {rows, columns}, at<void>(numbers), at<std::uint8_t>(codes), at<float>(scales)), 0; });
}

void unpack_here(const std::string& number, const std::string& format, std::size_t rows, std::size_t columns,
                 std::uint64_t numbers, std::uint64_t codes, std::uint64_t scales) {
  const Number n = number_of(number);
  const Format f = format_of(format);
  without_gil([&] { return pack::unpack(n, f, {rows, columns}, at<std::uint8_t>(codes), at<float>(scales), at<void>(numbers)), 0; });
}

// Both directions take the same arguments; only the caller's stream does anything.
template <auto act>
void on_device(const std::string& number, const std::string& format, std::size_t rows, std::size_t columns,
               std::uint64_t numbers, std::uint64_t codes, std::uint64_t scales, int ordinal, std::uint64_t stream) {
  const Number n = number_of(number);
  const Format f = format_of(format);
  const pack::OnDevice where{ordinal, at<device::StreamState>(stream), numbers, codes, scales};
  without_gil([&] { return act(n, f, Shape{rows, columns}, where), 0; });
}

}  // namespace

void register_pack(py::module_& m) {
  m.attr("PACK_RUN") = pack::kRun;
  const auto define = [&](const char* name, auto function, auto... more) {
    m.def(name, function, py::arg("number"), py::arg("format"), py::arg("rows"), py::arg("columns"), py::arg("numbers"),
          py::arg("codes"), py::arg("scales"), more...);
  };
  define("pack", &pack_here);
  define("unpack", &unpack_here);
  define("pack_on_device", &on_device<&pack::pack_on_device>, py::arg("ordinal"), py::arg("stream"));
  define("unpack_on_device", &on_device<&pack::unpack_on_device>, py::arg("ordinal"), py::arg("stream"));
  m.def("pack_vectors", [] { return pack::name_of(pack::best_vectors()); });
  m.def("why_no_kernels", &pack::why_no_kernels);
}

}  // namespace zmqpp::bind
