// What is behind every handle: a reference count, and a mark that tells a live object from something else.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace lyc {

class Object {
 public:
  Object() = default;
  Object(const Object &) = delete;
  Object &operator=(const Object &) = delete;

  void retain() const { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() const {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }
  bool alive() const { return mark_ == kAlive; }

 protected:
  virtual ~Object() { mark_ = 0; }

 private:
  static constexpr std::uint32_t kAlive = 0x1c0a11feu;
  volatile std::uint32_t mark_ = kAlive;  // volatile: the store in the destructor must not be optimised away
  mutable std::atomic<std::uint32_t> references_{1};
};

/// Owns one reference.
template <typename T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T *adopted) : object_(adopted) {}
  Ref(const Ref &other) : object_(other.object_) {
    if (object_) object_->retain();
  }
  Ref(Ref &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref &operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_) object_->release();
  }
  static Ref share(T &object) {
    object.retain();
    return Ref(&object);
  }

  T *get() const { return object_; }
  T &operator*() const { return *object_; }
  T *operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  T *detach() { return std::exchange(object_, nullptr); }

 private:
  T *object_ = nullptr;
};

}  // namespace lyc
