// Bytes on their way between CPU memory and the memory of a context's device. Where the two are the same there is
// nothing to copy, and none of this costs anything.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/tensor.hpp"
#include "core/context.hpp"

namespace lyc {

/// An order in which a device works. There is none where its memory is CPU memory: handle() is null, and what is
/// enqueued has been done.
class Stream {
 public:
  explicit Stream(lyc_context &context);
  ~Stream();
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;

  void *handle() const { return handle_; }
  void write(void *device, const void *host, std::size_t size);
  void read(void *host, const void *device, std::size_t size);
  void wait();             // until all of it has finished
  void settle() noexcept;  // the same, whatever became of it

 private:
  lyc_context &context_;
  void *handle_ = nullptr;
};

/// CPU memory that the device copies from and to while others work.
class HostBuffer {
 public:
  explicit HostBuffer(lyc_context &context) : context_(context) {}
  ~HostBuffer();
  HostBuffer(const HostBuffer &) = delete;
  HostBuffer &operator=(const HostBuffer &) = delete;

  /// At least so many bytes; what was there is lost.
  char *reserve(std::size_t size);
  char *data() const { return data_; }

 private:
  lyc_context &context_;
  char *data_ = nullptr;
  std::size_t size_ = 0;
};

/// A block that the host and the device work on by turns. It is kept from use to use: fresh pages cost as much as the
/// arithmetic on them.
class Staging {
 public:
  explicit Staging(lyc_context &context) : context_(context), host_(context) {}

  /// At least so many bytes; what was there is lost.
  void reserve(std::size_t size);
  char *host() const { return host_.data() ? host_.data() : static_cast<char *>(device()); }
  void *device() const { return device_.data(); }
  void send(Stream &stream, std::size_t size);
  void fetch(Stream &stream, std::size_t size);

 private:
  lyc_context &context_;
  HostBuffer host_;
  DeviceBuffer device_;
};

/// Brings tensors to a device, many in one copy and large ones in several. With a stream they go through pinned memory,
/// two buffers of bounded size by turns, so that one is filled while the other is copied. Without one they are few:
/// ordinary memory, which need not be pinned first, and copies that are waited for.
class Uploader {
 public:
  explicit Uploader(lyc_context &context, Stream *stream = nullptr);
  ~Uploader();
  Uploader(const Uploader &) = delete;
  Uploader &operator=(const Uploader &) = delete;

  lyc_context &context() const { return context_; }

  /// So many bytes are coming, as far as that is known.
  void expect(std::uint64_t size) { expected_ += size; }
  static std::uint64_t room_for(std::uint64_t size);  // what a tensor of that size takes of it

  /// Puts bytes `begin` .. `begin + size - 1` of a tensor at `to`.
  using Fill = std::function<void(char *to, std::uint64_t begin, std::size_t size)>;

  /// A tensor on the device, whose bytes come from `fill` in order. `buffers` take its memory.
  lyc_tensor place(lyc_dtype dtype, const Shape &shape, const Fill &fill, std::vector<DeviceBuffer> &buffers);

  /// The same with the bytes of a contiguous CPU tensor.
  lyc_tensor copy(const lyc_tensor &tensor, std::vector<DeviceBuffer> &buffers);

  /// Everything is there on return.
  void finish();

 private:
  char *staged(std::size_t size);
  void begin_chunk(std::uint64_t size);
  void send(void *device, std::size_t size);
  void send_collected();
  void send_pieces(void *device, std::uint64_t size, const Fill &fill);

  lyc_context &context_;
  Stream *stream_;
  std::uint64_t expected_ = 0;
  HostBuffer pinned_[2];
  std::vector<char> ordinary_;
  int turn_ = 0;
  DeviceBuffer chunk_;
  std::vector<DeviceBuffer> sending_;  // alive until finish(), whatever becomes of the tensors
  std::uint64_t sent_ = 0, used_ = 0;  // of chunk_; what is between them is staged
};

}  // namespace lyc
