# The install tree: header, libraries, CMake package, pkg-config file.
