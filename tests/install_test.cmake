# Installs into a fresh folder, builds examples/ against it, runs the program.
set(root ${BUILD}/install_test)
file(REMOVE_RECURSE ${root})
foreach(command
        "${CMAKE_COMMAND};--install;${BUILD};--prefix;${root}/prefix"
        "${CMAKE_COMMAND};-G;${GENERATOR};-S;${SOURCE}/examples;-B;${root}/build;\
-DCMAKE_PREFIX_PATH=${root}/prefix"
        "${CMAKE_COMMAND};--build;${root}/build"
        "${root}/build/first_actions"
        "${root}/prefix/bin/tendon;version")
  execute_process(COMMAND ${command} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
