// A CPU context: its threads, and the instruction set that it uses.
#pragma once

#include "base/threads.hpp"
#include "cpu/kernels.hpp"
#include "ops/backend.hpp"

struct lyc::ops::BackendContext {
  BackendContext(int threads, const cpu::Kernels &table) : pool(threads), kernels(table) {}

  ThreadPool pool;
  const cpu::Kernels &kernels;
};
