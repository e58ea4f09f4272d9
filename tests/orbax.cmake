# The converter of JAX checkpoints. It needs packages from PyPI, which go into the build folder; a
# machine that cannot get them skips the test.
add_test(NAME orbax COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/orbax_test.py
                            $<TARGET_FILE:tendon> $<TARGET_FILE:golden_case> ${CMAKE_SOURCE_DIR}
                            ${CMAKE_BINARY_DIR})
set_tests_properties(orbax PROPERTIES LABELS python SKIP_RETURN_CODE 77 TIMEOUT 600)
