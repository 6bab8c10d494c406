# orchard_floor(NAME SOURCES ... DEPENDS ...)  a static library of one floor
# orchard_kernel_sources(VARIABLE)             the .cu files of our kernels
# orchard_test(NAME ...)                       a GoogleTest program bin/NAME from NAME.cpp
# orchard_benchmark(NAME ...)                  a program bin/NAME from NAME.cpp

function(orchard_floor name)
  cmake_parse_arguments(FLOOR "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  if(NOT FLOOR_SOURCES)
    add_library(orchard_${name} INTERFACE)
    target_link_libraries(orchard_${name} INTERFACE orchard_compiler ${FLOOR_DEPENDS})
    return()
  endif()
  add_library(orchard_${name} STATIC ${FLOOR_SOURCES})
  target_link_libraries(orchard_${name} PUBLIC orchard_compiler ${FLOOR_DEPENDS} PRIVATE ${FLOOR_PRIVATE_DEPENDS})
endfunction()

# Every kernel in them is ours: the emulator runs it, and tests look at what nvcc and ptxas make of it. A .cu file in
# kernels/cuda is none of them. It calls a library whose kernels come as source (CUB): nvcc alone compiles it, and the
# emulator has a stand-in for the call (kernels/simt/library_*.cpp).
function(orchard_kernel_sources variable)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*/*.cu)
  list(FILTER sources EXCLUDE REGEX "/kernels/cuda/")
  set(${variable} ${sources} PARENT_SCOPE)
endfunction()

# Seconds after which a test hangs. Sanitized code takes several times as long.
if(ORCHARD_SANITIZE)
  set(ORCHARD_TEST_TIMEOUT 1800)
else()
  set(ORCHARD_TEST_TIMEOUT 600)
endif()

# Of tests that start ranks. The last: launch/run.sh says why.
set(ORCHARD_TEST_MPI
  OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PMIX_MCA_psec=^munge)

function(orchard_test source)
  cmake_parse_arguments(TEST "" "" "DEPENDS" ${ARGN})
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE orchard_compiler ${TEST_DEPENDS} GTest::gtest GTest::gmock orchard_test_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "OMP_NUM_THREADS=2;${ORCHARD_TEST_MPI}" TIMEOUT ${ORCHARD_TEST_TIMEOUT})
  orchard_test_may_skip(${name})
endfunction()

# A test of a GoogleTest program counts as skipped where all that it ran was (tests/exit_code.h).
function(orchard_test_may_skip name)
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

function(orchard_benchmark name)
  cmake_parse_arguments(BENCH "" "" "DEPENDS" ${ARGN})
  add_executable(${name} ${name}.cpp)
  target_link_libraries(${name} PRIVATE orchard_compiler ${BENCH_DEPENDS})
endfunction()
