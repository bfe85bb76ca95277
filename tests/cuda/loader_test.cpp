// The loader opens at most one back end per process and remembers what it tried, so each test runs in a child process
// (a "threadsafe" death test, which starts the program anew).
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <string>

#include "base/error.hpp"
#include "core/backends.hpp"

namespace lyc::core {
namespace {

std::string fake(const char *which) { return std::string(FAKE_FOLDER) + "/" + which; }
std::string fake_file(const char *which) { return fake(which) + "/liblycoris_cuda.so"; }

std::string message_of(const std::function<void()> &body) {
  try {
    body();
  } catch (const Error &error) {
    return concat(static_cast<int>(error.status()), " ", error.what());
  }
  return "no error";
}

/// Run `body` in a fresh process and match what it writes to stderr.
#define IN_NEW_PROCESS(body, pattern)                              \
  GTEST_FLAG_SET(death_test_style, "threadsafe");                  \
  EXPECT_EXIT(                                                     \
      {                                                            \
        std::fputs(([&]() -> std::string body)().c_str(), stderr); \
        std::exit(0);                                              \
      },                                                           \
      testing::ExitedWithCode(0), pattern)

TEST(Loader, FindsTheFileInTheNamedFolder) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", fake("good").c_str(), 1);
        return backend_for(LYC_DEVICE_CUDA).version + (" " + explain_backend(LYC_DEVICE_CUDA));
      },
      LYCORIS_VERSION " cuda: .*/good/liblycoris_cuda.so");
}

TEST(Loader, SaysWhatItTried) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", "/nonexistent", 1);
        return message_of([] { backend_for(LYC_DEVICE_CUDA); }) + explain_backend(LYC_DEVICE_CUDA);
      },
      "3 no CUDA back end: /nonexistent/liblycoris_cuda.so: no such file/nonexistent/liblycoris_cuda.so: no such file");
}

TEST(Loader, RefusesARelativeFolder) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", ".", 1);
        return message_of([] { backend_for(LYC_DEVICE_CUDA); });
      },
      "must be an absolute path");
}

TEST(Loader, RefusesOtherReleases) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", fake("other_version").c_str(), 1);
        return message_of([] { backend_for(LYC_DEVICE_CUDA); });
      },
      "3 .*not the back end of release");
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", fake("other_name").c_str(), 1);
        return message_of([] { backend_for(LYC_DEVICE_CUDA); });
      },
      "3 .*it is of another release");
}

TEST(Loader, CanBeSwitchedOff) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", fake("good").c_str(), 1);
        setenv("LYCORIS_DISABLE_CUDA", "1", 1);
        return message_of([] { backend_for(LYC_DEVICE_CUDA); }) + message_of([] { load_backend(fake_file("good")); });
      },
      "3 no CUDA back end: LYCORIS_DISABLE_CUDA=1 .*3 LYCORIS_DISABLE_CUDA=1");
}

TEST(Loader, LoadsAnExplicitFileOnceEvenAfterASearchThatFailed) {
  IN_NEW_PROCESS(
      {
        setenv("LYCORIS_BACKEND_DIR", "/nonexistent", 1);
        std::string text = find_backend(LYC_DEVICE_CUDA) ? "found; " : "none; ";
        text += message_of([] { load_backend("liblycoris_cuda.so"); }) + "; ";
        text += message_of([] { load_backend("/nonexistent/file.so"); }) + "; ";
        text += message_of([] { load_backend(fake_file("good")); }) + "; ";
        return text + message_of([] { load_backend(fake_file("good")); });
      },
      "none; 1 .*not an absolute path; 4 /nonexistent/file.so: no such file; no error; 3 .*loaded already");
}

TEST(Loader, TheCpuIsAlwaysThere) {
  EXPECT_EQ(backend_for(LYC_DEVICE_CPU).device_type, LYC_DEVICE_CPU);
  EXPECT_EQ(explain_backend(LYC_DEVICE_CPU), "cpu: built in\n");
  EXPECT_THROW(backend_for(static_cast<lyc_device_type>(9)), Error);
}

}  // namespace
}  // namespace lyc::core
