// A folder for one test, and plain ways to put files into it and look at what is there.
#pragma once

#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <stdlib.h>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/os.hpp"

namespace lyc::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "lycoris-XXXXXX").string();
    if (mkdtemp(path.data())) path_ = path;
  }
  TemporaryFolder(const TemporaryFolder &) = delete;
  TemporaryFolder &operator=(const TemporaryFolder &) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  const std::string &path() const { return path_; }
  std::string operator/(const std::string &name) const { return os::join(path_, name); }

  /// Write a file, with the folders above it, and return its path.
  std::string put(const std::string &name, const std::string &contents) const {
    const std::string path = *this / name;
    os::make_folder(os::parent_folder(path));
    os::write_text(path, contents);
    return path;
  }

  std::vector<std::string> names() const { return os::list_folder(path_); }

 private:
  std::string path_;
};

inline std::string contents(const std::string &path) { return os::read_text(path, std::size_t{1} << 30); }

/// Length, JSON and data as a safetensors file.
inline std::string image(const std::string &json, const std::string &data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(json.size() >> (8 * i) & 0xff);
  return bytes + json + data;
}

/// A file of U8 tensors, each with its text as data.
inline std::string image_of(const std::map<std::string, std::string> &tensors, const std::string &metadata = "") {
  std::string json, data;
  for (const auto &[name, text] : tensors) {
    json +=
        (json.empty() ? "{" : ",") + concat('"', name, "\":{\"dtype\":\"U8\",\"shape\":[", text.size(),
                                            "],\"data_offsets\":[", data.size(), ",", data.size() + text.size(), "]}");
    data += text;
  }
  if (!metadata.empty()) json += (json.empty() ? "{" : ",") + concat("\"__metadata__\":", metadata);
  return image(json.empty() ? "{}" : json + "}", data);
}

/// The error that `body` throws: status and message, or OK and "".
struct Outcome {
  lyc_status status = LYC_OK;
  std::string message;
};

template <typename Body>
Outcome outcome_of(Body &&body) {
  try {
    body();
    return {};
  } catch (const Error &error) {
    return {error.status(), error.what()};
  }
}

/// Expect `body` to fail with `status` and a one-line message that names each of `parts`.
template <typename Body>
void expect_error(lyc_status status, const std::vector<std::string> &parts, Body &&body) {
  const Outcome outcome = outcome_of(body);
  EXPECT_EQ(outcome.status, status) << outcome.message;
  for (const std::string &part : parts) EXPECT_NE(outcome.message.find(part), std::string::npos) << outcome.message;
  EXPECT_EQ(outcome.message.find('\n'), std::string::npos);
}

}  // namespace lyc::test
