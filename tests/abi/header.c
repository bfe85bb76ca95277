/* The header alone, as one C or C++ file, under every dialect and -Wpadded: see CMakeLists.txt. */
#include "lycoris.h"

#ifdef LYCORIS_TEST_PADDED /* proves that the gate sees padding; clang looks at structs whose size is asked for, so \
                              see layout.c */
typedef struct test_padded {
  char first;
  int64_t second;
} test_padded;
typedef char test_padded_size[sizeof(test_padded)];
#endif
