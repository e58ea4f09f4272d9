# The house style as a test, and a test of that test; and what two analysers say about src/.
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
add_test(NAME tidy COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tools/tidy.py
                           ${CMAKE_SOURCE_DIR})
add_test(NAME tidy_self_test COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tools/tidy.py
                                     --self-test)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  foreach(analyser clang_tidy cppcheck)
    add_test(NAME ${analyser} COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tools/analyse
                                      ${analyser} ${CMAKE_BINARY_DIR})
    # Each uses every processor.
    set_tests_properties(${analyser} PROPERTIES LABELS tidy TIMEOUT 900 RUN_SERIAL ON)
  endforeach()
endif()
set_tests_properties(tidy tidy_self_test PROPERTIES LABELS tidy TIMEOUT 60)
