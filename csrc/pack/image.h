// kernels.cu as nvcc compiled it for several devices; the build writes it (image.cmake).
//
// Owns: nothing: constants. Blocks? never. Thread: all safe. Errors: none: no image has a reason.
#pragma once

namespace zmqpp::pack {

extern const unsigned char kImage[];
extern const bool kHasImage;
extern const char kWhyNoImage[];  // empty with one

}  // namespace zmqpp::pack
