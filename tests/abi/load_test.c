/*
 * The library as a guest: a C program opens it by absolute path, uses it, and closes it, again and again.
 *
 *   load_test quiet PATH   loading reads no environment, starts no thread, installs no handler, prints nothing
 *   load_test reload PATH  100 rounds leave nothing behind: no mapping, no thread, no growth
 *
 * The program is linked with its symbols visible, so that the functions below stand in for those of the C library.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lycoris.h"

enum { kRounds = 100, kWarmUpRounds = 3, kAllowedGrowth = 64 * 1024 };

static int environment_reads;
static int threads_started;

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

char *getenv(const char *name) {
  char *(*real)(const char *) = (char *(*)(const char *))dlsym(RTLD_NEXT, "getenv");
  ++environment_reads;
  return real(name);
}

char *secure_getenv(const char *name) {
  char *(*real)(const char *) = (char *(*)(const char *))dlsym(RTLD_NEXT, "secure_getenv");
  ++environment_reads;
  return real(name);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument) {
  int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
      (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
  ++threads_started;
  return real(thread, attributes, body, argument);
}

static void *open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fprintf(stderr, "%s\n", dlerror());
  CHECK(library);
  return library;
}

static void *find(void *library, const char *name) {
  void *symbol = dlsym(library, name);
  if (!symbol) fprintf(stderr, "%s\n", dlerror());
  CHECK(symbol);
  return symbol;
}

static int count_threads(void) {
  DIR *tasks = opendir("/proc/self/task");
  int count = 0;
  struct dirent *entry;
  CHECK(tasks);
  while ((entry = readdir(tasks))) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

static int is_mapped(const char *name) {
  char line[4096];
  int found = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  CHECK(maps);
  while (fgets(line, sizeof line, maps)) found |= strstr(line, name) != NULL;
  fclose(maps);
  return found;
}

/* Signals with a handler, as a mask; never all ones, since SIGKILL cannot have one. */
static unsigned long long caught_signals(void) {
  char line[256];
  unsigned long long mask = ~0ull;
  FILE *status = fopen("/proc/self/status", "r");
  CHECK(status);
  while (fgets(line, sizeof line, status)) sscanf(line, "SigCgt: %llx", &mask);
  fclose(status);
  CHECK(mask != ~0ull);
  return mask;
}

static void quiet(const char *path) {
  const unsigned long long signals = caught_signals();
  uint32_t (*abi_version)(void);
  void *library;
  CHECK(getenv("PATH") && environment_reads == 1); /* the stand-in works */
  environment_reads = 0;
  library = open_library(path);
  CHECK(environment_reads == 0);
  CHECK(threads_started == 0);
  CHECK(count_threads() == 1);
  CHECK(caught_signals() == signals);
  *(void **)&abi_version = find(library, "lyc_abi_version");
  CHECK(abi_version() == ((uint32_t)LYC_ABI_MAJOR << 16 | LYC_ABI_MINOR));
  CHECK(dlclose(library) == 0);
  CHECK(!is_mapped("liblycoris"));
}

/* Throws and catches inside the library, which is what makes the C++ runtime allocate. */
static void *use(void *library) {
  lyc_status (*check)(const lyc_tensor *);
  lyc_status (*create)(const lyc_context_options *, lyc_context **);
  void (*init)(lyc_context_options *, size_t);
  void (*release)(lyc_context *);
  lyc_context_options options;
  lyc_context *context = NULL;
  *(void **)&check = find(library, "lyc_tensor_check");
  *(void **)&create = find(library, "lyc_context_create");
  *(void **)&init = find(library, "lyc_context_options_init");
  *(void **)&release = find(library, "lyc_context_release");
  CHECK(check(NULL) != LYC_OK);
  init(&options, sizeof options);
  options.threads = 3;
  CHECK(create(&options, &context) == LYC_OK);
  release(context);
  return NULL;
}

static void round_trip(const char *path) {
  void *library = open_library(path);
  pthread_t thread;
  use(library);
  CHECK(pthread_create(&thread, NULL, use, library) == 0); /* leaves thread-local state of the library behind */
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(dlclose(library) == 0);
  CHECK(!is_mapped("liblycoris"));
  CHECK(count_threads() == 1);
}

static void reload(const char *path) {
  size_t before, after;
  int i;
  for (i = 0; i < kWarmUpRounds; ++i) round_trip(path);
  before = mallinfo2().uordblks;
  for (i = 0; i < kRounds; ++i) round_trip(path);
  after = mallinfo2().uordblks;
  printf("%d rounds: heap in use %zu -> %zu bytes\n", kRounds, before, after);
  CHECK(after < before + kAllowedGrowth);
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  if (strcmp(argv[1], "quiet") == 0) {
    quiet(argv[2]);
  } else {
    CHECK(strcmp(argv[1], "reload") == 0);
    reload(argv[2]);
  }
  return 0;
}
