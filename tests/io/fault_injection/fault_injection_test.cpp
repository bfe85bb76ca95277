// Every output call of a writing program fails once, in every way: the output is then the old one or the new one,
// whole, the program's word on it is true, and nothing else is left in the folder.
#include <cerrno>
#include <cstdio>
#include <gtest/gtest.h>
#include <string>
#include <sys/wait.h>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc {
namespace {

using test::contents;
using test::TemporaryFolder;

struct Ending {
  int exit_status = -1;  // -1: killed
  int calls = -1;
};

struct Setting {
  std::string mode;  // of the victim
  bool has_tmpfile, replaces;
};

std::string label(const testing::TestParamInfo<Setting> &info) {
  return info.param.mode + (info.param.has_tmpfile ? "_nameless" : "_named") +
         (info.param.replaces ? "_over_old" : "_new");
}

class FaultInjection : public testing::TestWithParam<Setting> {
 protected:
  FaultInjection() {
    input_ = folder_.put("input.safetensors",
                         test::image_of({{"a", std::string(5000, 'a')}, {"b", std::string(3000, 'b')}, {"c", "c"}}));
    is_folder_ = GetParam().mode == "folder";
    const Ending normal = run_victim(0, "0");
    calls_ = normal.exit_status == 0 ? normal.calls : -1;
    new_ = contents(weights());
  }

  std::string output() const { return folder_ / "out/model"; }
  std::string weights() const { return is_folder_ ? output() + "/model.safetensors" : output(); }

  void prepare() {
    std::filesystem::remove_all(folder_ / "out");
    os::make_folder(folder_ / "out");
    if (GetParam().replaces) folder_.put(is_folder_ ? "out/model/model.safetensors" : "out/model", "old");
  }

  Ending run_victim(int at, const std::string &kind) {
    prepare();
    // ASan wants to be the first library; it is content with being loaded second when it does not look.
    const std::string command = concat("ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD='", LYCORIS_PRELOAD, "' ",
                                       GetParam().has_tmpfile ? "" : "LYCORIS_NO_TMPFILE=1 ", "LYCORIS_FAULT_AT=", at,
                                       " LYCORIS_FAULT_KIND=", kind, " '", LYCORIS_VICTIM, "' ", GetParam().mode, " '",
                                       input_, "' '", output(), "' 2>/dev/null");
    FILE *pipe = popen(("exec env " + command).c_str(), "r");
    Ending result;
    if (std::fscanf(pipe, "%d", &result.calls) != 1) result.calls = -1;
    const int status = pclose(pipe);
    if (WIFEXITED(status)) result.exit_status = WEXITSTATUS(status);
    return result;
  }

  bool is_new() const { return os::file_type(weights()) == os::FileType::kFile && contents(weights()) == new_; }
  bool is_old() const {
    if (!GetParam().replaces) return os::file_type(output()) == os::FileType::kMissing;
    return os::file_type(weights()) == os::FileType::kFile && contents(weights()) == "old";
  }

  std::size_t leftovers() const {
    const std::vector<std::string> names = os::list_folder(folder_ / "out");
    return names.size() - (os::file_type(output()) == os::FileType::kMissing ? 0 : 1);
  }

  TemporaryFolder folder_;
  std::string input_, new_;
  bool is_folder_ = false;
  int calls_ = 0;  // counted when all goes well
};

TEST_P(FaultInjection, FailedCallsLeaveTheOldOrTheNewOutput) {
  ASSERT_GE(calls_, 8);
  int refused = 0;
  for (const int code : {ENOSPC, EIO, EINTR})
    for (int at = 1; at <= calls_; ++at) {
      const Ending result = run_victim(at, std::to_string(code));
      SCOPED_TRACE(concat("call ", at, " of ", calls_, ", errno ", code));
      ASSERT_TRUE(result.exit_status == 0 || result.exit_status == 1) << result.exit_status;
      EXPECT_TRUE(result.exit_status == 0 ? is_new() : is_old());
      EXPECT_EQ(leftovers(), 0u);
      refused += result.exit_status;
    }
  EXPECT_GE(refused, 6);
}

TEST_P(FaultInjection, ShortWritesAreCompleted) {
  for (int at = 1; at <= calls_; ++at) {
    EXPECT_EQ(run_victim(at, "short").exit_status, 0) << at;
    EXPECT_TRUE(is_new()) << at;
  }
}

TEST_P(FaultInjection, KilledProgramsLeaveTheOldOrTheNewOutput) {
  std::size_t with_leftovers = 0;
  for (int at = 1; at <= calls_; ++at) {
    EXPECT_EQ(run_victim(at, "kill").exit_status, -1) << at;
    EXPECT_TRUE(is_new() || is_old()) << at;
    with_leftovers += leftovers() > 0 ? 1 : 0;
  }
  // A nameless file needs a name for one moment, and only to replace another: between linkat() and rename().
  if (!is_folder_ && GetParam().has_tmpfile) {
    EXPECT_LE(with_leftovers, GetParam().replaces ? 1u : 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Output, FaultInjection,
                         testing::Values(Setting{"file", true, false}, Setting{"file", true, true},
                                         Setting{"file", false, false}, Setting{"file", false, true},
                                         Setting{"folder", true, false}, Setting{"folder", true, true}),
                         label);

}  // namespace
}  // namespace lyc
