#include "weight_plan.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "stream_kernels.hpp"
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

/// In the order that CUtensorMap's encoder wants: the innermost axis first.
TensorMap encode(const Context &context, const MapSpec &spec) {
  TensorMap map{};
  if (!spec.data) return map;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(spec.inner), static_cast<cuuint64_t>(spec.outer)};
  const cuuint64_t pitches[] = {static_cast<cuuint64_t>(spec.pitch_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(spec.box_inner), static_cast<cuuint32_t>(spec.box_outer)};
  const cuuint32_t steps[] = {1, 1};
  const int span = spec.box_inner * 2;
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const CUresult status =
      context.encode_map(reinterpret_cast<CUtensorMap *>(&map),
                         spec.bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, spec.data,
                         extents, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                         span == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                         : span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                      : CU_TENSOR_MAP_SWIZZLE_32B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw Error(LYC_ERROR_DEVICE, "a tensor map was refused", static_cast<int>(status));
  return map;
}

std::vector<StreamTarget> encode(const Context &context, const StreamGroup &group) {
  std::vector<StreamTarget> targets;
  for (const StreamWeight &weight : group.weights) {
    StreamTarget &target = targets.emplace_back(weight.target);
    target.base = encode(context, weight.base);
    target.out = encode(context, weight.out);
    for (int p = 0; p < kMaxStreamProducts; ++p) {
      target.row[p] = encode(context, weight.row[p]);
      target.column[p] = encode(context, weight.column[p]);
    }
  }
  return targets;
}

void upload(WeightPlan &plan) {
  Block block;
  std::vector<std::size_t> stream_targets, stream_tiles;
  for (const StreamGroup &group : plan.layout.streams) {
    const std::vector<StreamTarget> encoded = encode(*plan.context, group);
    plan.only.push_back(encoded.front());
    const bool alone = encoded.size() == 1;
    stream_targets.push_back(alone ? 0 : block.append(encoded));
    stream_tiles.push_back(alone ? 0 : block.append(group.first_tiles()));
  }
  const std::size_t terms = plan.layout.groups.empty() ? 0 : block.append(plan.layout.terms);
  std::vector<std::size_t> targets, first_tiles;
  for (const TargetGroup &group : plan.layout.groups) {
    targets.push_back(block.append(group.targets));
    first_tiles.push_back(block.append(group.first_tile));
  }
  if (!block.bytes().empty()) {
    const UncapturedScope uncaptured;
    check(cudaMalloc(&plan.memory, block.bytes().size()), "cudaMalloc");
    copy(*plan.context, plan.memory, block.bytes().data(), block.bytes().size(), cudaMemcpyHostToDevice);
  }
  for (std::size_t g = 0; g < plan.layout.streams.size(); ++g) {
    const StreamGroup &group = plan.layout.streams[g];
    const bool alone = group.weights.size() == 1;
    plan.streams.push_back({alone ? nullptr : at<StreamTarget>(plan.memory, stream_targets[g]),
                            alone ? nullptr : at<std::uint32_t>(plan.memory, stream_tiles[g]),
                            static_cast<std::int32_t>(group.weights.size()), group.first_tiles().back()});
  }
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
  plan.info.launches = static_cast<std::int32_t>(plan.streams.size() + plan.tables.size());
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
  plan->layout = lay_out(batch, context.encode_map != nullptr);
  for (const StreamGroup &group : plan->layout.streams) {
    int blocks = 0;
    check(resident_blocks(group.kind, &blocks), "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    plan->stream_blocks.push_back(blocks * context.multiprocessors);
  }
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
  for (std::size_t g = 0; g < plan.streams.size(); ++g)
    check(launch_stream(plan.layout.streams[g].kind, plan.streams[g], plan.only[g], plan.stream_blocks[g], options.op,
                        multipliers, stream),
          "launching the streaming kernel");
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
