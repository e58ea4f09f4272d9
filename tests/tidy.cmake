# The house style as a test, and a test of that test.
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
add_test(NAME tidy COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tools/tidy.py
                           ${CMAKE_SOURCE_DIR})
add_test(NAME tidy_self_test COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tools/tidy.py
                                     --self-test)
set_tests_properties(tidy tidy_self_test PROPERTIES LABELS tidy TIMEOUT 60)
