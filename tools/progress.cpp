#include <csignal>
#include <cstdio>
#include <unistd.h>

#include "program.hpp"

namespace program {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) { interrupted = 1; }

constexpr int kBarWidth = 40;

}  // namespace

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {
  std::signal(SIGINT, interrupt);
  std::signal(SIGTERM, interrupt);
  std::signal(SIGHUP, interrupt);
}

Progress::~Progress() {
  if (!quiet_ && terminal_ && shown_ >= 0) std::fprintf(stderr, "\r\033[K");
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGHUP, SIG_DFL);
}

int32_t Progress::callback(void *self, uint64_t done, uint64_t total) {
  auto *progress = static_cast<Progress *>(self);
  if (!progress->quiet_) progress->show(done, total);
  return interrupted;
}

void Progress::show(uint64_t done, uint64_t total) {
  const int percent = total == 0 ? 100 : static_cast<int>(done * 100 / total);
  const int step = terminal_ ? percent : percent / 10;
  if (step == shown_) return;
  shown_ = step;
  const std::string amount = bytes_text(static_cast<double>(done)) + " of " + bytes_text(static_cast<double>(total));
  if (terminal_) {
    const std::string bar(static_cast<std::size_t>(percent * kBarWidth / 100), '=');
    std::fprintf(stderr, "\r[%-*s] %3d %%  %s\033[K", kBarWidth, bar.c_str(), percent, amount.c_str());
  } else {
    std::fprintf(stderr, "%3d %%  %s\n", percent, amount.c_str());
  }
}

}  // namespace program
