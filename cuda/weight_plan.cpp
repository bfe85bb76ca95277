#include "weight_plan.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "weight_kernels.hpp"

namespace lyc::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

/// Collects arrays into one block, so that preparing takes one allocation and one copy.
class Block {
 public:
  template <typename T>
  std::size_t append(const std::vector<T> &array) {
    const std::size_t offset = bytes_.size(), size = array.size() * sizeof(T);
    bytes_.resize(aligned(offset + size));
    std::memcpy(bytes_.data() + offset, array.data(), size);
    return offset;
  }
  const std::vector<char> &bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

template <typename T>
const T *at(const void *memory, std::size_t offset) {
  return reinterpret_cast<const T *>(static_cast<const char *>(memory) + offset);
}

void upload(WeightPlan &plan) {
  Block block;
  const std::size_t terms = block.append(plan.layout.terms);
  std::vector<std::size_t> targets, first_tiles;
  for (const TargetGroup &group : plan.layout.groups) {
    targets.push_back(block.append(group.targets));
    first_tiles.push_back(block.append(group.first_tile));
  }
  if (plan.layout.groups.empty()) return;
  const UncapturedScope uncaptured;
  check(cudaMalloc(&plan.memory, block.bytes().size()), "cudaMalloc");
  copy(*plan.context, plan.memory, block.bytes().data(), block.bytes().size(), cudaMemcpyHostToDevice);
  for (std::size_t g = 0; g < plan.layout.groups.size(); ++g) {
    const TargetGroup &group = plan.layout.groups[g];
    plan.tables.push_back({at<MatrixTarget>(plan.memory, targets[g]), at<LowRankTerm>(plan.memory, terms),
                           at<std::uint32_t>(plan.memory, first_tiles[g]),
                           static_cast<std::int32_t>(group.targets.size()), group.tile_count, group.tile_rows,
                           group.chunk_capacity});
  }
}

bool needs_staging(const WeightPlan &plan) { return plan.multiplier_count > kInlineMultipliers; }

void describe_run(WeightPlan &plan) {
  plan.info.launches = static_cast<std::int32_t>(plan.tables.size());
  if (!needs_staging(plan)) return;
  plan.info.launches += store_launches(plan.multiplier_count);
  plan.info.workspace_size = aligned(static_cast<std::size_t>(plan.multiplier_count) * sizeof(float));
}

/// Where the kernels find the multipliers: in device memory as it is, by value, or staged in the workspace.
Multipliers place_multipliers(const WeightPlan &plan, const ops::RunOptions &options, cudaStream_t stream) {
  Multipliers placed{};
  if (options.multipliers && options.multipliers_on_device) {
    placed.device = options.multipliers;
    return placed;
  }
  const std::vector<float> ones(options.multipliers ? 0 : static_cast<std::size_t>(plan.multiplier_count), 1.0f);
  const float *host = options.multipliers ? options.multipliers : ones.data();
  if (!needs_staging(plan)) {
    std::copy_n(host, plan.multiplier_count, placed.values);
    return placed;
  }
  auto *staged = static_cast<float *>(options.workspace);
  require(staged, "the workspace is missing; ", plan.info.workspace_size, " bytes are needed");
  check(launch_store_multipliers(host, plan.multiplier_count, staged, stream), "storing multipliers");
  placed.device = staged;
  return placed;
}

}  // namespace

WeightPlan *prepare(Context &context, const ops::WeightBatch &batch) {
  const DeviceScope scope(context);
  auto plan = std::make_unique<WeightPlan>();
  plan->context = &context;
  plan->multiplier_count = batch.multiplier_count;
  plan->layout = lay_out(batch, context.shared_memory);
  for (TargetGroup &group : plan->layout.groups) {
    int blocks = 0;
    check(resident_blocks(group.kind, group.chunk_capacity, &blocks), "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    schedule(group, std::int64_t{context.multiprocessors} * blocks * kWarpsPerBlock);
  }
  upload(*plan);
  describe_run(*plan);
  return plan.release();
}

void run(WeightPlan &plan, const ops::RunOptions &options) {
  require(options.op == ops::WeightOp::kDiff || plan.layout.has_all_bases,
          "merging needs a base for every weight, and this batch has weights without one");
  const DeviceScope scope(*plan.context);
  const auto stream = static_cast<cudaStream_t>(options.stream);
  const Multipliers multipliers = place_multipliers(plan, options, stream);
  for (std::size_t g = 0; g < plan.tables.size(); ++g)
    check(launch_low_rank(plan.layout.groups[g].kind, plan.tables[g], options.op, multipliers, stream),
          "launching a weight kernel");
}

std::string explain(const WeightPlan &plan) {
  return concat(describe(plan.layout), plan.info.launches, " launches, ", plan.info.workspace_size,
                " bytes of workspace\n");
}

void release(WeightPlan *plan) noexcept {
  if (!plan) return;
  if (plan->memory) {
    const DeviceScope scope(*plan->context);
    const UncapturedScope uncaptured;
    cudaFree(plan->memory);
  }
  delete plan;
}

}  // namespace lyc::cuda
