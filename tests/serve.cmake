# The policy server: the real binary, real clients from PyPI, Autobahn's cases, a real browser, and
# a race detector.
add_test(NAME serve.command COMMAND ${Python3_EXECUTABLE} -B
                                    ${CMAKE_CURRENT_SOURCE_DIR}/serve_test.py
                                    $<TARGET_FILE:tendon> ${protocol})
set_tests_properties(serve.command PROPERTIES LABELS "server;python" TIMEOUT 300)

# Environments from PyPI lie beside the build folders, so that both builds share them.
set(environments ${CMAKE_SOURCE_DIR}/build/environments)
add_test(NAME serve.clients
         COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/clients_test.py --tendon
                 $<TARGET_FILE:tendon> --venvs ${environments} --data ${protocol})
set_tests_properties(serve.clients PROPERTIES LABELS "server;python" TIMEOUT 600
                                              SKIP_RETURN_CODE 77)

add_executable(echo_server echo_server.cc)
target_link_libraries(echo_server PRIVATE tendon_serve tendon_flags)
add_test(NAME serve.autobahn
         COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/autobahn_test.py
                 $<TARGET_FILE:echo_server> ${environments}/autobahn)
set_tests_properties(serve.autobahn PROPERTIES LABELS "server;python" TIMEOUT 600
                                               SKIP_RETURN_CODE 77)

add_executable(client_alone client_alone.cc)
target_link_libraries(client_alone PRIVATE tendon_client tendon_flags)
add_test(NAME client_alone COMMAND client_alone)
set_tests_properties(client_alone PROPERTIES LABELS server)

find_program(CHROMIUM chromium)
add_test(NAME serve.page
         COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/page_test.py --chromium
                 ${CHROMIUM} --page ${CMAKE_SOURCE_DIR}/src/serve/page.html --out
                 ${CMAKE_CURRENT_BINARY_DIR}/page)
set_tests_properties(serve.page PROPERTIES LABELS "server;python" TIMEOUT 300 SKIP_RETURN_CODE 77)

# Sixteen clients that leave at random, under ThreadSanitizer: the server's own files are compiled
# once more for it, with a stub of a policy.
if(NOT TENDON_SANITIZE)
  file(GLOB race_sources ${CMAKE_SOURCE_DIR}/src/serve/*.cc ${CMAKE_SOURCE_DIR}/src/client/*.cc)
  list(FILTER race_sources EXCLUDE REGEX "model_card|/client\\.cc|action_queue")
  add_executable(server_race server_race.cc ${race_sources})
  set_target_properties(server_race PROPERTIES ${one_file})
  # Asio's fences are not understood by the detector; its queues are locked in any case.
  target_compile_definitions(server_race PRIVATE BOOST_ASIO_DISABLE_FENCED_BLOCK
                                                 TENDON_PAGE="${page}")
  target_compile_options(server_race PRIVATE -fsanitize=thread -g1)
  target_link_options(server_race PRIVATE -fsanitize=thread)
  target_include_directories(server_race SYSTEM PRIVATE ${Boost_INCLUDE_DIRS})
  target_link_libraries(server_race PRIVATE tendon_flags tendon_policy ZLIB::ZLIB GTest::gtest)
  add_test(NAME serve.race COMMAND server_race 30)
  set_tests_properties(serve.race PROPERTIES LABELS server TIMEOUT 180)
endif()
