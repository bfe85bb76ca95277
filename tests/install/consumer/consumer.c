/* Succeeds if the library that it was built with and runs with has the version of the command line. */
#include <lycoris.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
  printf("lycoris %s\n", lyc_version_string());
  return !(argc == 2 && strcmp(argv[1], lyc_version_string()) == 0);
}
