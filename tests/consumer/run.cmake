# Installs the build into a fresh prefix, builds the program beside this file against it and checks what it prints.
#   cmake -DBUILD=... -DWORK=... -DCXX=... -DGENERATOR=... -P run.cmake
file(REMOVE_RECURSE ${WORK})
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${ARGV}:\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer)
if(NOT output MATCHES "^[a-z0-9]+ attention: 2\\.000, log-sum-exp 0\\.693\n$")
  message(FATAL_ERROR "the program printed: ${output}")
endif()

# The exported target is for others: nothing of this tree or of its private tools may show in it.
file(GLOB_RECURSE exported ${WORK}/prefix/*Targets*.cmake)
foreach(file ${exported})
  file(READ ${file} text)
  foreach(word mla_build nlohmann_json CLI11 -Werror ${BUILD}/)
    string(FIND "${text}" "${word}" found)
    if(NOT found EQUAL -1)
      message(FATAL_ERROR "${file} mentions ${word}")
    endif()
  endforeach()
endforeach()
