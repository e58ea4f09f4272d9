# The command as a user types it: exit code and a piece of what it prints, per line of the table in
# command_line_test.py.
add_test(NAME command_line COMMAND ${Python3_EXECUTABLE} -B
                                   ${CMAKE_CURRENT_SOURCE_DIR}/command_line_test.py
                                   $<TARGET_FILE:tendon> ${CMAKE_CURRENT_SOURCE_DIR}/data)
set_tests_properties(command_line PROPERTIES LABELS command TIMEOUT 300)
if(NOT TENDON_SANITIZE)  # that run has no simulators, beside which its device's deadlines are short
  set_tests_properties(command_line PROPERTIES RUN_SERIAL ON)
endif()
