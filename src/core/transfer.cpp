#include "core/transfer.hpp"

#include <algorithm>
#include <cstring>

#include "base/error.hpp"

namespace lyc {
namespace {

constexpr std::uint64_t kChunkBytes = 16u << 20;  // of an uploader; larger tensors have chunks of their own
constexpr std::uint64_t kAlignment = 256;

/// Whether the device's memory is another than the CPU's.
bool apart(const lyc_context &context) { return context.backend->stream_create != nullptr; }

}  // namespace

Stream::Stream(lyc_context &context) : context_(context) {
  if (!apart(context)) return;
  ops::Failure failure;
  check(context.backend->stream_create(context.device, &handle_, &failure), failure);
}

Stream::~Stream() {
  settle();
  if (handle_) context_.backend->stream_destroy(context_.device, handle_);
}

void Stream::write(void *device, const void *host, std::size_t size) {
  ops::Failure failure;
  check(context_.backend->stream_write(context_.device, handle_, device, host, size, &failure), failure);
}

void Stream::read(void *host, const void *device, std::size_t size) {
  ops::Failure failure;
  check(context_.backend->stream_read(context_.device, handle_, host, device, size, &failure), failure);
}

void Stream::wait() {
  if (!handle_) return;
  ops::Failure failure;
  check(context_.backend->stream_wait(context_.device, handle_, &failure), failure);
}

void Stream::settle() noexcept {
  if (handle_) context_.backend->stream_wait(context_.device, handle_, nullptr);
}

HostBuffer::~HostBuffer() {
  if (data_) context_.backend->host_release(context_.device, data_);
}

char *HostBuffer::reserve(std::size_t size) {
  if (size <= size_) return data_;
  if (data_) context_.backend->host_release(context_.device, data_);
  data_ = nullptr;
  size_ = 0;
  void *memory = nullptr;
  ops::Failure failure;
  check(context_.backend->host_allocate(context_.device, size, &memory, &failure), failure);
  data_ = static_cast<char *>(memory);
  size_ = size;
  return data_;
}

void Staging::reserve(std::size_t size) {
  if (apart(context_)) host_.reserve(size);
  if (size <= device_.size()) return;
  device_ = {};
  device_ = DeviceBuffer(context_, size);
}

void Staging::send(Stream &stream, std::size_t size) {
  if (host() != device()) stream.write(device(), host(), size);
}

void Staging::fetch(Stream &stream, std::size_t size) {
  if (host() != device()) stream.read(host(), device(), size);
}

Uploader::Uploader(lyc_context &context, Stream *stream)
    : context_(context), stream_(stream), pinned_{HostBuffer(context), HostBuffer(context)} {}

Uploader::~Uploader() {
  if (stream_) stream_->settle();
}

std::uint64_t Uploader::room_for(std::uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

void Uploader::begin_chunk(std::uint64_t size) {
  send();
  const std::uint64_t bytes = std::max(size, std::min(expected_, kChunkBytes));
  chunk_ = DeviceBuffer(context_, bytes);
  if (stream_)
    pinned_[turn_].reserve(bytes);
  else
    ordinary_.resize(bytes);
}

lyc_tensor Uploader::place(lyc_dtype dtype, const Shape &shape, void **host, std::vector<DeviceBuffer> &buffers) {
  lyc_tensor tensor = make_tensor(nullptr, dtype, shape);
  tensor.device_type = context_.options.device_type;
  tensor.device_index = context_.options.device_index;
  const std::uint64_t size = byte_extent(tensor), room = room_for(size);
  if (!apart(context_)) {
    buffers.emplace_back(context_, size);
    *host = tensor.data = buffers.back().data();
    return tensor;
  }
  if (used_ + room > chunk_.size()) begin_chunk(room);
  if (buffers.empty() || buffers.back().data() != chunk_.data()) buffers.push_back(chunk_);
  tensor.data = static_cast<char *>(chunk_.data()) + used_;
  *host = (stream_ ? pinned_[turn_].data() : ordinary_.data()) + used_;
  used_ += room;
  expected_ -= std::min(expected_, room);
  return tensor;
}

lyc_tensor Uploader::copy(const lyc_tensor &tensor, std::vector<DeviceBuffer> &buffers) {
  require(is_contiguous(tensor), "parameters must be contiguous");
  void *host = nullptr;
  const lyc_tensor result = place(tensor.dtype, shape_of(tensor), &host, buffers);
  if (const std::uint64_t size = byte_extent(tensor)) std::memcpy(host, tensor.data, size);
  return result;
}

void Uploader::send() {
  if (used_ == 0) return;
  if (stream_) {
    stream_->wait();  // for the copy from the other buffer, which is filled next
    sending_ = chunk_;
    stream_->write(chunk_.data(), pinned_[turn_].data(), used_);
    turn_ = 1 - turn_;
  } else {
    write_device(context_, chunk_.data(), ordinary_.data(), used_);
  }
  used_ = 0;
}

void Uploader::finish() {
  send();
  if (stream_) stream_->wait();
  chunk_ = sending_ = {};
  expected_ = 0;
}

}  // namespace lyc
