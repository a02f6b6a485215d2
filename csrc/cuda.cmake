# devinterp_fast._cuda: built where nvcc is found (DIF_CUDA=AUTO), or demanded (ON). The CUDA runtime is linked statically,
# so the module imports on a machine without a driver or a GPU, where it says why CUDA is off.
if(DIF_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: off, as DIF_CUDA=OFF asks")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(DIF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DIF_CUDA: expected nvcc for ON, got none")
  endif()
  message(STATUS "CUDA: off, nvcc was not found")
  return()
endif()

# Machine code for Turing to Blackwell, and PTX of the last for what comes after it. CUDA 13 knows nothing older.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(
    CMAKE_CUDA_ARCHITECTURES
    75-real
    80-real
    86-real
    89-real
    90-real
    100-real
    120
  )
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
message(STATUS "CUDA: on, ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

pybind11_add_module(
  _cuda
  bind/cuda.cpp
  cuda/device.cu
  cuda/glr.cu
  cuda/gram.cu
  cuda/lanczos.cu
  cuda/moments.cu
  cuda/noise.cu
  cuda/resident.cu
  cuda/resident_plan.cu
  cuda/resident_products.cu
  cuda/step.cu
)
target_include_directories(_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
# The sources leave nothing to contract (cuda/lanes.cuh); -fmad=false keeps it so.
target_compile_options(
  _cuda
  PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas>
)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic>)
if(DIF_WERROR)
  target_compile_options(
    _cuda
    PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Werror> $<$<COMPILE_LANGUAGE:CXX>:-Werror>
  )
endif()
target_link_options(_cuda PRIVATE $<$<PLATFORM_ID:Linux>:-Wl,--exclude-libs,ALL>)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
set_source_files_properties(
  bind/cuda.cpp
  PROPERTIES
    COMPILE_DEFINITIONS
      "DIF_CUDA_VERSION=\"${CMAKE_CUDA_COMPILER_VERSION}\";DIF_CUDA_ARCHITECTURES=\"${architectures}\""
)
install(TARGETS _cuda LIBRARY DESTINATION devinterp_fast)
