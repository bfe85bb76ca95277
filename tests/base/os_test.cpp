#include "base/os.hpp"

#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "io/container/temporary_folder.hpp"

namespace lyc::os {
namespace {

using test::contents;
using test::expect_error;
using test::TemporaryFolder;

mode_t mode_of(const std::string &path) {
  struct stat status {};
  EXPECT_EQ(stat(path.c_str(), &status), 0);
  return status.st_mode & 0777;
}

void write_file(const std::string &path, const std::string &text, Replace replace) {
  OutputFile file(path);
  file.write(0, text.data(), text.size());
  file.commit(replace);
}

TEST(File, ReadsAnyRange) {
  const TemporaryFolder folder;
  const File file(folder.put("a", "0123456789"));
  EXPECT_EQ(file.size(), 10u);
  char bytes[4] = {};
  file.read(3, bytes, 4);
  EXPECT_EQ(std::string(bytes, 4), "3456");
  file.read(10, bytes, 0);
}

TEST(File, ErrorsNameThePathAndTheReason) {
  const TemporaryFolder folder;
  expect_error(LYC_ERROR_NOT_FOUND, {folder / "none", "No such file"}, [&] { File(folder / "none"); });
  expect_error(LYC_ERROR_IO, {folder.path(), "directory"}, [&] { File(folder.path()); });
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error(LYC_ERROR_IO, {"pipe", "not a regular file"}, [&] { File(folder / "pipe"); });
}

TEST(File, NoticesThatItShrank) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "0123456789");
  const File file(path);
  ASSERT_EQ(truncate(path.c_str(), 4), 0);
  char bytes[10];
  expect_error(LYC_ERROR_IO, {path, "shorter"}, [&] { file.read(0, bytes, 10); });
  OutputFile copy(folder / "copy");
  expect_error(LYC_ERROR_IO, {path, "shorter"}, [&] { copy.copy_from(file, 0, 0, 10); });
}

TEST(File, IdentityIsThatOfTheFileNotOfTheName) {
  const TemporaryFolder folder;
  const File file(folder.put("a", "x"));
  folder.put("b", "x");
  std::filesystem::create_symlink("a", folder / "link");
  EXPECT_TRUE(file_identity(folder / "link") == file.identity());
  EXPECT_FALSE(file_identity(folder / "b") == file.identity());
  EXPECT_FALSE(file_identity(folder / "none").has_value());
}

TEST(OutputFile, AppearsOnlyAtCommit) {
  const TemporaryFolder folder;
  {
    OutputFile file(folder / "a");
    file.reserve(1000);
    file.write(0, "abc", 3);
    for (const std::string &name : folder.names()) EXPECT_EQ(name.front(), '.');
  }
  EXPECT_TRUE(folder.names().empty());
  write_file(folder / "a", "abc", Replace::kNo);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
  EXPECT_EQ(contents(folder / "a"), "abc");
}

TEST(OutputFile, ReplacesOnlyWhenAllowed) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "old");
  const File reader(path);
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {path, "exists"}, [&] { write_file(path, "new", Replace::kNo); });
  EXPECT_EQ(contents(path), "old");
  write_file(path, "new", Replace::kYes);
  EXPECT_EQ(contents(path), "new");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
  char bytes[3];
  reader.read(0, bytes, 3);  // who had the old file open still has it
  EXPECT_EQ(std::string(bytes, 3), "old");
}

TEST(OutputFile, KeepsTheRightsOfWhatItReplaces) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "old");
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  write_file(path, "new", Replace::kYes);
  EXPECT_EQ(mode_of(path), 0640u);
}

TEST(OutputFile, NewFilesFollowTheUmask) {
  const TemporaryFolder folder;
  const mode_t old = umask(027);
  write_file(folder / "a", "new", Replace::kNo);
  umask(old);
  EXPECT_EQ(mode_of(folder / "a"), 0640u);
}

TEST(OutputFile, FollowsLinks) {
  const TemporaryFolder folder;
  folder.put("real/a", "old");
  std::filesystem::create_symlink("real/a", folder / "link");
  std::filesystem::create_symlink("real/b", folder / "dangling");
  write_file(folder / "link", "new", Replace::kYes);
  write_file(folder / "dangling", "b", Replace::kNo);
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(contents(folder / "real/a"), "new");
  EXPECT_EQ(contents(folder / "real/b"), "b");
}

TEST(OutputFile, RefusesLoopsFoldersAndMissingParents) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  expect_error(LYC_ERROR_IO, {"loop"}, [&] { OutputFile(folder / "loop"); });
  expect_error(LYC_ERROR_INVALID_ARGUMENT, {folder.path(), "regular"}, [&] { OutputFile{folder.path()}; });
  expect_error(LYC_ERROR_NOT_FOUND, {"none/a"}, [&] { OutputFile(folder / "none/a"); });
}

TEST(OutputFile, SaysThatAFolderIsReadOnly) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const TemporaryFolder folder;
  ASSERT_EQ(chmod(folder.path().c_str(), 0500), 0);
  expect_error(LYC_ERROR_IO, {folder / "a", "Permission denied"}, [&] { OutputFile(folder / "a"); });
  ASSERT_EQ(chmod(folder.path().c_str(), 0700), 0);
}

TEST(OutputFile, CopiesRanges) {
  const TemporaryFolder folder;
  std::string text(3'000'001, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 % 251);
  const File source(folder.put("a", text));
  OutputFile file(folder / "b");
  file.copy_from(source, 1, 5, text.size() - 1);
  file.write(0, "12345", 5);
  file.commit(Replace::kNo);
  EXPECT_TRUE(contents(folder / "b") == "12345" + text.substr(1));
}

TEST(OutputFile, TakesConcurrentWrites) {
  const TemporaryFolder folder;
  constexpr std::size_t kPart = 10'007;
  OutputFile file(folder / "a");
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      const std::string part(kPart, static_cast<char>('a' + t));
      file.write(t * kPart, part.data(), part.size());
    });
  for (std::thread &thread : threads) thread.join();
  file.commit(Replace::kNo);
  std::string expected;
  for (std::size_t t = 0; t < 8; ++t) expected += std::string(kPart, static_cast<char>('a' + t));
  EXPECT_TRUE(contents(folder / "a") == expected);
}

TEST(OutputFolder, AppearsOnlyAtCommit) {
  const TemporaryFolder folder;
  {
    OutputFolder output(folder / "model");
    write_text(join(output.staging_path(), "a"), "a");
    EXPECT_EQ(file_type(folder / "model"), FileType::kMissing);
  }
  EXPECT_TRUE(folder.names().empty());
  OutputFolder output((folder / "model") + "/");
  make_folder(join(output.staging_path(), "unet"));
  write_text(join(output.staging_path(), "unet/a"), "a");
  output.commit(Replace::kNo);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model"});
  EXPECT_EQ(contents(folder / "model/unet/a"), "a");
}

TEST(OutputFolder, ReplacesOnlyWhenAllowed) {
  const TemporaryFolder folder;
  folder.put("model/a", "old");
  {
    OutputFolder output(folder / "model");
    write_text(join(output.staging_path(), "a"), "new");
    expect_error(LYC_ERROR_INVALID_ARGUMENT, {"model", "exists"}, [&] { output.commit(Replace::kNo); });
    EXPECT_EQ(contents(folder / "model/a"), "old");
    write_text(join(output.staging_path(), "b"), "new");
    output.commit(Replace::kYes);
  }
  EXPECT_EQ(contents(folder / "model/a"), "new");
  EXPECT_EQ(contents(folder / "model/b"), "new");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model"});
}

TEST(OutputFolder, NeverDeletesWhatItDoesNotReplace) {
  const TemporaryFolder folder;
  folder.put("model/a", "old");
  folder.put("model/sub/thesis", "the only copy");
  {
    OutputFolder output(folder / "model");
    write_text(join(output.staging_path(), "a"), "new");
    make_folder(join(output.staging_path(), "sub"));
    expect_error(LYC_ERROR_INVALID_ARGUMENT, {"thesis", "model/sub"}, [&] { output.commit(Replace::kYes); });
  }
  EXPECT_EQ(contents(folder / "model/a"), "old");
  EXPECT_EQ(contents(folder / "model/sub/thesis"), "the only copy");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model"});
}

TEST(Os, PathsAreJoinedAndTakenApart) {
  EXPECT_EQ(join("", "a"), "a");
  EXPECT_EQ(join("/", "a"), "/a");
  EXPECT_EQ(join("a/b", "c"), "a/b/c");
  EXPECT_EQ(parent_folder("a"), ".");
  EXPECT_EQ(parent_folder("/a"), "/");
  EXPECT_EQ(parent_folder("a/b/c"), "a/b");
  EXPECT_EQ(file_name("a/b"), "b");
}

TEST(Os, TextIsBounded) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "12345");
  EXPECT_EQ(read_text(path, 5), "12345");
  expect_error(LYC_ERROR_FORMAT, {path, "5 bytes"}, [&] { read_text(path, 4); });
}

TEST(Os, LibrariesAreFoundOrExplained) {
  std::string why;
  EXPECT_EQ(open_library("/nowhere/liblycoris_none.so", &why), nullptr);
  EXPECT_NE(why.find("liblycoris_none.so"), std::string::npos) << why;
  void *libc = open_library("libc.so.6", &why);
  ASSERT_NE(libc, nullptr) << why;
  EXPECT_NE(find_symbol(libc, "printf"), nullptr);
  EXPECT_EQ(find_symbol(libc, "lycoris_no_such_symbol"), nullptr);
  EXPECT_EQ(folder_of_library(find_symbol(libc, "printf")).front(), '/');
  EXPECT_EQ(folder_of_library(reinterpret_cast<const void *>(&mode_of)), "");
}

TEST(Os, EnvironmentIsRead) {
  EXPECT_EQ(environment("LYCORIS_NO_SUCH_VARIABLE"), nullptr);
  ASSERT_EQ(setenv("LYCORIS_OS_TEST", "x", 1), 0);
  EXPECT_STREQ(environment("LYCORIS_OS_TEST"), "x");
}

TEST(Os, MachineHasProcessorsMemoryAndTime) {
  EXPECT_GE(cpu_count(), 1);
  EXPECT_GT(physical_memory(), 1u << 20);
  const double begin = monotonic_seconds();
  EXPECT_GE(monotonic_seconds(), begin);
}

}  // namespace
}  // namespace lyc::os
