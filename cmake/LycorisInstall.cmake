# The install tree: header, libraries, program, CMake package, pkg-config file. It can be moved as a whole.
include(CMakePackageConfigHelpers)

option(LYCORIS_INSTALL "Install the library" ${PROJECT_IS_TOP_LEVEL})
if(NOT LYCORIS_INSTALL)
  return()
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lycoris)
install(TARGETS lycoris EXPORT lycoris-targets FILE_SET HEADERS)
install(EXPORT lycoris-targets NAMESPACE lycoris:: DESTINATION ${package_dir})
configure_package_config_file(
  cmake/lycoris-config.cmake.in ${PROJECT_BINARY_DIR}/lycoris-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(  # before 1.0 a minor step may break
  ${PROJECT_BINARY_DIR}/lycoris-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/lycoris-config.cmake ${PROJECT_BINARY_DIR}/lycoris-config-version.cmake
  DESTINATION ${package_dir})

file(RELATIVE_PATH prefix_from_pc /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/lycoris.pc.in ${PROJECT_BINARY_DIR}/lycoris.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/lycoris.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE THIRD_PARTY_NOTICES.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(LYCORIS_CUDA STREQUAL "PLUGIN")  # next to the library, which looks for it there
  install(TARGETS lycoris_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
if(TARGET lycoris_cli)
  set_target_properties(lycoris_cli PROPERTIES INSTALL_RPATH $ORIGIN/../${CMAKE_INSTALL_LIBDIR})
  install(TARGETS lycoris_cli)
endif()
