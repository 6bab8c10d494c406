# The build's flags refuse a kernel that spills registers, for that reason and by the compiler's exit code, and take
# the same kernel of fewer values.
#
# usage: cmake -DCOMPILER=NVCC -DFLAGS=... -DSOURCE=spill.cu -DCUBIN=FILE -P ptxas_refuses_spills.cmake
function(compile values result output)
  execute_process(COMMAND ${COMPILER} ${FLAGS} -DVALUES=${values} -arch=sm_80 -cubin -o ${CUBIN} ${SOURCE}
    RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(${result} ${code} PARENT_SCOPE)
  set(${output} "${text}" PARENT_SCOPE)
endfunction()

compile(8 code text)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "8 values were refused: ${code}, ${text}")
endif()
compile(96 code text)
if(code EQUAL 0)
  message(FATAL_ERROR "96 values were compiled: ${text}")
endif()
if(NOT text MATCHES "Registers are spilled")
  message(FATAL_ERROR "96 values were refused, but not as spilled: ${text}")
endif()
