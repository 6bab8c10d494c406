# Compiler settings shared by every target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

add_library(orchard_compiler INTERFACE)
target_compile_options(orchard_compiler INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror>
  # Designated initializers leave the operands that an operation does not need to their defaults.
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>
  # A fused multiply-add must appear where the source asks for it, or debug and release would round differently.
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
# A kernel that spills registers or keeps an array in local memory does not compile.
set(ORCHARD_PTXAS_FLAGS -Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error)
target_compile_options(orchard_compiler INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:${ORCHARD_PTXAS_FLAGS}>
  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wshadow>
  # Functions that are constexpr on the host, such as those of dtype.h, run on the GPU as well.
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
  # fmt 9 checks format strings at compile time, and does not by itself under nvcc.
  $<$<COMPILE_LANGUAGE:CUDA>:-DFMT_USE_CONSTEXPR=1>)
target_include_directories(orchard_compiler INTERFACE ${PROJECT_SOURCE_DIR})

if(ORCHARD_SANITIZE)
  # GCC 12 takes the sanitizer's own copies of variables for uninitialised ones.
  target_compile_options(orchard_compiler INTERFACE -fsanitize=${ORCHARD_SANITIZE} -fno-omit-frame-pointer
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
  target_link_options(orchard_compiler INTERFACE -fsanitize=${ORCHARD_SANITIZE})
endif()

# How the host compiler compiles kernels for the emulator. Unrolling pragmas are nvcc's; tensor maps are passed by value,
# which old compilers did otherwise; kernels view their shared memory as more than one type.
set(ORCHARD_SIMT_OPTIONS -Wno-unknown-pragmas -Wno-psabi -fno-strict-aliasing)
# Plain accesses to memory call the emulator (kernels/simt/plain_accesses.cpp), and keep the lines they are on. The
# compiler can do that for one sanitizer alone.
set(ORCHARD_SIMT_PLAIN_ACCESSES OFF)
if(NOT ORCHARD_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(ORCHARD_SIMT_PLAIN_ACCESSES ON)
  list(APPEND ORCHARD_SIMT_OPTIONS -fsanitize=thread --param=tsan-instrument-func-entry-exit=0
    -fno-tree-vectorize -fno-tree-slp-vectorize -g1)
endif()
