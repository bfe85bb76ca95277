# What all targets of the project share: an interface target with warnings and sanitizers, and two short functions.

add_library(lycoris_options INTERFACE)
target_compile_features(lycoris_options INTERFACE cxx_std_17)
# The name under which liblycoris_cuda.so exports its table: both sides must be of one release.
string(REPLACE "." "_" lycoris_release ${PROJECT_VERSION})
target_compile_definitions(lycoris_options INTERFACE LYC_CUDA_ENTRY=lyc_cuda_backend_${lycoris_release})
if(LYCORIS_WARNINGS AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(lycoris_options INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion>)
endif()
if(LYCORIS_SANITIZE)
  target_compile_options(lycoris_options INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${LYCORIS_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(lycoris_options INTERFACE -fsanitize=${LYCORIS_SANITIZE})
endif()

if(LYCORIS_FUZZERS)
  target_compile_options(lycoris_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()

# Programs and libraries go below build/<preset>/, not into the folders of their sources.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)

# lycoris_add_test(name SOURCES... [LIBRARIES ...] [LABELS ...]): a GoogleTest program on the library's inside.
# Those labelled `threads` are what the thread sanitizer is for; the target thread_tests builds them and no others.
add_custom_target(thread_tests)
function(lycoris_add_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE lycoris_core lycoris_options GTest::gmock GTest::gtest_main ${arg_LIBRARIES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  if(arg_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}")
  endif()
  if("threads" IN_LIST arg_LABELS)
    add_dependencies(thread_tests ${name})
  endif()
endfunction()
