# What makes a shared library a good guest in a foreign process (docs/abi.md): it shows the functions of its header and
# nothing else, binds its own calls to itself, and brings its C++ runtime along.

# Write a linker version script that names the header's functions one by one: a pattern would also show what only
# looks like a function of the header.
function(lycoris_write_version_script header script)
  set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${header})
  file(READ ${header} text)
  string(REGEX MATCHALL "LYC_API +[a-z][^(;]*[ *]lyc_[a-z0-9_]+\\(" declarations "${text}")
  list(TRANSFORM declarations REPLACE ".*[ *](lyc_[a-z0-9_]+)\\($" "\\1")
  list(SORT declarations)
  list(JOIN declarations ";\n    " names)
  set(node LYCORIS_${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  file(CONFIGURE OUTPUT ${script} CONTENT "@node@ {\n  global:\n    @names@;\n  local:\n    *;\n};\n" @ONLY)
endfunction()

function(lycoris_shape_shared_library target)
  set(script ${PROJECT_BINARY_DIR}/lycoris.map)
  lycoris_write_version_script(${PROJECT_SOURCE_DIR}/include/lycoris.h ${script})
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${script})
  target_compile_options(${target} PRIVATE
    -fno-semantic-interposition
    -g)  # of the thin C layer only: abidiff reads the interface from it
  target_link_options(${target} PRIVATE
    -Wl,--version-script=${script} -Wl,--exclude-libs,ALL -Wl,-Bsymbolic-functions -Wl,--gc-sections)
  if(NOT LYCORIS_SANITIZE)  # sanitizer run times are found in the program, and bring the shared C++ runtime
    target_link_options(${target} PRIVATE -Wl,-z,defs -static-libstdc++ -static-libgcc)
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src/capi/unload.cpp)
  endif()
endfunction()
