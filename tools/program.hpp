// What the subcommands share.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "lycoris.h"

namespace CLI {
class App;
}

namespace program {

enum ExitCode { kDone = 0, kFailed = 1, kWrongUsage = 2 };

/// A failed call: its message becomes the one line on stderr.
struct Failure {
  std::string message;
};

inline void check(lyc_status status) {
  if (status != LYC_OK) throw Failure{lyc_last_error_message()};
}

template <typename T, void (*Release)(T *)>
struct Releaser {
  void operator()(T *object) const { Release(object); }
};
using Context = std::unique_ptr<lyc_context, Releaser<lyc_context, lyc_context_release>>;
using Report = std::unique_ptr<lyc_report, Releaser<lyc_report, lyc_report_release>>;

Context make_context(int threads, const std::string &device = "cpu");

/// Text out of files, fit for a terminal: control characters become '?'.
std::string printable(std::string text);
inline std::string printable(const nlohmann::ordered_json &text) { return printable(text.get<std::string>()); }

/// "1.2 GB"; decimal units.
std::string bytes_text(double bytes);

/// "locon 12, loha+dora 3"
std::string counts_text(const nlohmann::ordered_json &counts);

/// Set up a subcommand; what it returns from its callback is the program's exit code.
void add_merge(CLI::App &app, int &exit_code);
void add_inspect(CLI::App &app, int &exit_code);

/// Progress on stderr: a bar on a terminal, a line for each tenth otherwise, nothing when quiet. An interrupt (Ctrl-C,
/// SIGTERM) while it lives cancels the work, which then leaves nothing behind.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();

  static int32_t callback(void *self, uint64_t done, uint64_t total);

 private:
  void show(uint64_t done, uint64_t total);

  bool quiet_, terminal_;
  int shown_ = -1;  // last percentage or tenth
};

}  // namespace program
