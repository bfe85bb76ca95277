#include "core/transfer.hpp"

#include <algorithm>
#include <cstring>

#include "base/error.hpp"

namespace lyc {
namespace {

constexpr std::uint64_t kChunkBytes = 8u << 20;  // of an uploader
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

/// Memory for the next copy.
char *Uploader::staged(std::size_t size) {
  if (stream_) return pinned_[turn_].reserve(size);
  if (ordinary_.size() < size) ordinary_.resize(size);
  return ordinary_.data();
}

void Uploader::begin_chunk(std::uint64_t size) {
  send_collected();
  chunk_ = DeviceBuffer(context_, std::max(size, std::min(expected_, kChunkBytes)));
  sending_.push_back(chunk_);
  sent_ = used_ = 0;
}

lyc_tensor Uploader::place(lyc_dtype dtype, const Shape &shape, const Fill &fill, std::vector<DeviceBuffer> &buffers) {
  lyc_tensor tensor = make_tensor(nullptr, dtype, shape);
  tensor.device_type = context_.options.device_type;
  tensor.device_index = context_.options.device_index;
  const std::uint64_t size = byte_extent(tensor), room = room_for(size);
  if (size == 0) return tensor;
  if (!apart(context_) || size > kChunkBytes) {
    buffers.emplace_back(context_, size);
    tensor.data = buffers.back().data();
    expected_ -= std::min(expected_, room);
    if (!apart(context_)) return fill(static_cast<char *>(tensor.data), 0, size), tensor;
    sending_.push_back(buffers.back());
    send_pieces(tensor.data, size, fill);
    return tensor;
  }
  if (used_ + room > chunk_.size()) begin_chunk(room);
  if (buffers.empty() || buffers.back().data() != chunk_.data()) buffers.push_back(chunk_);
  tensor.data = static_cast<char *>(chunk_.data()) + used_;
  fill(staged(chunk_.size()) + (used_ - sent_), 0, size);
  used_ += room;
  expected_ -= std::min(expected_, room);
  return tensor;
}

lyc_tensor Uploader::copy(const lyc_tensor &tensor, std::vector<DeviceBuffer> &buffers) {
  require(is_contiguous(tensor), "parameters must be contiguous");
  const auto fill = [&](char *to, std::uint64_t begin, std::size_t size) {
    std::memcpy(to, static_cast<const char *>(tensor.data) + begin, size);
  };
  return place(tensor.dtype, shape_of(tensor), fill, buffers);
}

/// Copy what is staged. The other buffer, which is filled next, has been copied then.
void Uploader::send(void *device, std::size_t size) {
  if (!stream_) return write_device(context_, device, ordinary_.data(), size);
  stream_->wait();
  stream_->write(device, pinned_[turn_].data(), size);
  turn_ = 1 - turn_;
}

void Uploader::send_collected() {
  if (used_ > sent_) send(static_cast<char *>(chunk_.data()) + sent_, used_ - sent_);
  sent_ = used_;
}

void Uploader::send_pieces(void *device, std::uint64_t size, const Fill &fill) {
  send_collected();
  for (std::uint64_t begin = 0; begin < size; begin += kChunkBytes) {
    const auto piece = static_cast<std::size_t>(std::min(kChunkBytes, size - begin));
    fill(staged(piece), begin, piece);
    send(static_cast<char *>(device) + begin, piece);
  }
}

void Uploader::finish() {
  send_collected();
  if (stream_) stream_->wait();
  sending_.clear();
  chunk_ = {};
  expected_ = sent_ = used_ = 0;
}

}  // namespace lyc
