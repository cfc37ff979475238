# kernels.cu -> a C++ file with the image that nvcc makes of it, or with none and the reason: a machine without nvcc, or with
# one that cannot, builds zmqpp all the same, and packs tensors of a GPU on the CPU.
#
#   cmake -DNVCC=... -DSOURCES=csrc -DIMAGE=work.fatbin -DOUT=image.cc -P image.cmake

set(wanted 80 90 100 120)  # A100, H100 and H200, B200, RTX 50; others take sm_80's code or PTX

function(write_image bytes has why)
  file(WRITE "${OUT}" "#include \"pack/image.h\"\n\nnamespace zmqpp::pack {\nalignas(64) const unsigned char kImage[] = {${bytes}};\n"
    "const bool kHasImage = ${has};\nconst char kWhyNoImage[] = \"${why}\";\n}  // namespace zmqpp::pack\n")
endfunction()

function(give_up why)
  message(WARNING "CUDA kernels are left out, ${why}: compressed links pack tensors of a GPU on the CPU")
  write_image("0" false "${why}")
endfunction()

if(NOT NVCC)
  write_image("0" false "there was no nvcc where it was built")
  return()
endif()
execute_process(COMMAND "${NVCC}" --list-gpu-code OUTPUT_VARIABLE known ERROR_VARIABLE known RESULT_VARIABLE failed)
set(codes "")
foreach(one IN LISTS wanted)
  if(known MATCHES "sm_${one}[^0-9]")
    list(APPEND codes "-gencode" "arch=compute_${one},code=sm_${one}")
  endif()
endforeach()
if(failed OR NOT codes)
  give_up("nvcc knows none of the devices that they are for")
  return()
endif()
execute_process(
  COMMAND "${NVCC}" -std=c++17 -O3 -fmad=false -fatbin "-I${SOURCES}" ${codes} -gencode arch=compute_80,code=compute_80
    --no-compress "${SOURCES}/pack/kernels.cu" -o "${IMAGE}"
  OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
if(failed)
  message(STATUS "${said}")
  give_up("nvcc could not compile them where zmqpp was built")
  return()
endif()
file(READ "${IMAGE}" bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
write_image("${bytes}" true "")
