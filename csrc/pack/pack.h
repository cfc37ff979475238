// Packing and unpacking a tensor in CPU memory, by the vectors that this processor has.
//
// Owns: nothing. Blocks? never; about a second for 5 GB. Thread: all safe. Errors: none: whoever calls has checked sizes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp::pack {

enum class Number { kFloat32, kFloat16, kBfloat16 };
enum class Format { kFp8, kInt8 };

struct Shape {
  std::size_t rows, columns;  // row major, without gaps
  std::size_t runs_of_a_row() const;
  std::size_t values() const { return rows * columns; }
  std::size_t scales() const { return rows * runs_of_a_row(); }
};

enum class Vectors { kBaseline, kAvx2, kAvx512 };
Vectors best_vectors();                 // that this processor has
const char* name_of(Vectors vectors);

// `numbers`: shape.values() of them, aligned for their type; `codes`: as many bytes; `scales`: shape.scales() of them.
void pack(Number number, Format format, Shape shape, const void* numbers, std::uint8_t* codes, float* scales,
          Vectors by = best_vectors()) noexcept;
void unpack(Number number, Format format, Shape shape, const std::uint8_t* codes, const float* scales, void* numbers,
            Vectors by = best_vectors()) noexcept;

}  // namespace zmqpp::pack
