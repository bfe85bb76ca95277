// The handles of files: readers, and writers that collect borrowed tensors.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/object.hpp"
#include "io/container/tensor_file.hpp"

struct lyc_file final : lyc::Object {
  explicit lyc_file(lyc::io::TensorFile opened)
      : file(std::move(opened)), metadata(file.metadata().begin(), file.metadata().end()) {}

  const lyc::io::TensorFile file;
  const std::vector<std::pair<std::string, std::string>> metadata;  // by number
};

struct lyc_writer final : lyc::Object {
  explicit lyc_writer(std::string target) : path(std::move(target)) {}

  std::string path;
  lyc::io::Metadata metadata;
  std::vector<lyc::io::TensorInfo> tensors;
  std::vector<const void *> data;  // beside `tensors`
  bool finished = false;
};
