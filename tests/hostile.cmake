# The command in a hostile world: damaged files, full disks, kill -9; little memory, taken ports,
# wrong configurations. Each prints what it ran, a line per row of the table of failure tests.
set(sanitized)
if(TENDON_SANITIZE)
  set(sanitized --sanitized)
endif()
foreach(script hostile_test hostile_process_test)
  add_test(NAME ${script}
           COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/${script}.py
                   $<TARGET_FILE:tendon> ${protocol} ${CMAKE_CURRENT_SOURCE_DIR}/data
                   ${sanitized})
  set_tests_properties(${script} PROPERTIES LABELS hostile TIMEOUT 300)
endforeach()
