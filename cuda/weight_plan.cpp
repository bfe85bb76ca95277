#include "weight_plan.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>

#include "stream_kernels.hpp"
#include "term_kernels.hpp"

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

TensorMap encode(const Context &context, const MapSpec &spec) {
  TensorMap map{};
  if (!spec.data) return map;
  cuuint64_t extents[4], pitches[3];
  cuuint32_t box[4];
  std::copy_n(spec.extent, spec.axes, extents);
  std::copy_n(spec.pitch_bytes, spec.axes - 1, pitches);
  std::copy_n(spec.box, spec.axes, box);
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const int span = spec.box[0] * 2;
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const CUresult status = context.encode_map(
      reinterpret_cast<CUtensorMap *>(&map),
      spec.bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      static_cast<cuuint32_t>(spec.axes), spec.data, extents, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      span == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
      : span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                   : CU_TENSOR_MAP_SWIZZLE_32B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw Error(LYC_ERROR_DEVICE, "a tensor map was refused", static_cast<int>(status));
  return map;
}

bool turns_rows(const StreamGroup &group) { return group.kind.form == StreamForm::kRotation; }

std::vector<TurnTarget> encode_turns(const Context &context, const StreamGroup &group) {
  std::vector<TurnTarget> targets;
  for (const StreamWeight &weight : group.weights)
    targets.push_back({encode(context, weight.base), encode(context, weight.out), weight.rotation, weight.target.rows,
                       weight.target.columns});
  return targets;
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

/// Its limit is one of all blocks together.
bool wants_norm(const RotationTask &task) {
  return !task.prepared &&
         (task.limited == ops::Rotation::Limit::kTogether || task.limited == ops::Rotation::Limit::kAlways);
}

/// What a plan points to in its block, known once the block has an address.
class Uploader {
 public:
  explicit Uploader(WeightPlan &plan) : plan_(plan) {}

  void upload() {
    append_panels();
    append_streams();
    append_base_products();
    append_groups();
    append_elementwise();
    append_others();
    append_products();
    if (block_.bytes().empty()) return;
    plan_.memory = allocate_tables(*plan_.context, block_.bytes().size());
    copy(*plan_.context, plan_.memory, block_.bytes().data(), block_.bytes().size(), cudaMemcpyHostToDevice);
    for (const auto &place : places_) place(static_cast<const char *>(plan_.memory));
  }

 private:
  template <typename T>
  void point(const T *&pointer, std::size_t offset) {
    places_.push_back(
        [&pointer, offset](const char *memory) { pointer = reinterpret_cast<const T *>(memory + offset); });
  }

  template <typename T>
  void append(const std::vector<T> &array, const T *&pointer) {
    if (array.empty()) return;
    point(pointer, block_.append(array));
  }

  void append(const PieceCounter &counter, Schedule &schedule) {
    schedule.count = static_cast<std::int32_t>(counter.first.size());
    schedule.pieces = counter.pieces;
    append(counter.first, schedule.first);
  }

  void append_panels() {
    plan_.panels.resize(plan_.layout.panels.size());
    for (std::size_t g = 0; g < plan_.panels.size(); ++g) {
      const PanelGroup &group = plan_.layout.panels[g];
      PanelRun &run = plan_.panels[g];
      run.only = group.targets.front();
      run.multiprocessors = plan_.context->multiprocessors;
      run.blocks.count = static_cast<std::int32_t>(group.targets.size());
      if (group.targets.size() == 1) continue;  // travels with the launch
      append(group.blocks, run.blocks);
      append(group.targets, run.targets);
    }
  }

  void append_streams() {
    plan_.streams.resize(plan_.layout.streams.size());
    plan_.turns.resize(plan_.layout.streams.size());
    for (std::size_t g = 0; g < plan_.streams.size(); ++g) {
      const StreamGroup &group = plan_.layout.streams[g];
      plan_.streams[g].target_count = static_cast<std::int32_t>(group.weights.size());
      plan_.streams[g].run_count = group.run_count;
      const std::vector<StreamTarget> targets = encode(*plan_.context, group);
      plan_.only.push_back(targets.front());
      if (turns_rows(group)) {
        append_turns(group, plan_.turns[g]);
        continue;
      }
      if (targets.size() == 1) continue;  // travels with the launch
      append(targets, plan_.streams[g].targets);
      append(group.first_run, plan_.streams[g].first_run);
    }
  }

  void append_base_products() {
    for (std::size_t g = 0; g < plan_.base_products.size(); ++g) {
      const BaseGroup &group = plan_.layout.base_products[g];
      BaseRun &run = plan_.base_products[g];
      run.only = group.targets.front();
      run.table.target_count = static_cast<std::int32_t>(group.targets.size());
      run.table.run_count = group.run_count;
      if (group.targets.size() == 1) continue;  // travels with the launch
      append(group.targets, run.table.targets);
      append(group.first_run, run.table.first_run);
    }
  }

  void append_turns(const StreamGroup &group, TurnRun &run) {
    const std::vector<TurnTarget> targets = encode_turns(*plan_.context, group);
    run.only = targets.front();
    const PieceCounter boxes = pieces_of_turns(group);
    append(boxes, run.table.pieces);
    check(fit_turns(group.kind.bf16_factors, plan_.context->shared_bytes, &run.depth), "cudaFuncSetAttribute");
    run.blocks = std::min(boxes.pieces, static_cast<std::uint32_t>(plan_.context->multiprocessors));
    run.boxes = boxes.pieces / run.blocks;
    run.longer = boxes.pieces % run.blocks;
    if (targets.size() > 1) append(targets, run.table.targets);
  }

  void append_groups() {
    if (plan_.layout.groups.empty()) return;
    plan_.tables.resize(plan_.layout.groups.size());
    const std::size_t terms = block_.append(plan_.layout.terms);
    for (std::size_t g = 0; g < plan_.tables.size(); ++g) {
      const TargetGroup &group = plan_.layout.groups[g];
      TargetTable &table = plan_.tables[g];
      table.target_count = static_cast<std::int32_t>(group.targets.size());
      table.tile_count = group.tile_count;
      table.tile_rows = group.tile_rows;
      table.chunk_capacity = group.chunk_capacity;
      append(group.targets, table.targets);
      append(group.first_tile, table.first_tile);
      point(table.terms, terms);
    }
  }

  void append_elementwise() {
    const ElementwiseLayout &layout = plan_.layout.elementwise;
    if (layout.terms.empty()) return;
    for (std::size_t k = 0; k < kElementwiseKinds; ++k) {
      plan_.flat[k] = flat_target(layout, elementwise_kind(static_cast<int>(k)));
      if (plan_.flat[k] || layout.groups[k].targets.empty()) continue;
      append(layout.groups[k].targets, plan_.elementwise[k].targets);
      append(layout.groups[k].tiles, plan_.elementwise[k].tiles);
      append(layout.terms, plan_.elementwise[k].terms);
    }
    plan_.elementwise_rows.resize(layout.rows.size());
    for (std::size_t g = 0; g < layout.rows.size(); ++g) {
      ElementwiseRowsRun &run = plan_.elementwise_rows[g];
      run.only = layout.rows[g].targets.front();
      run.scales = layout.rows[g].scales;
      append(layout.rows[g].targets, run.targets);
      append(layout.rows[g].tiles, run.tiles);
      append(layout.terms, run.terms);
    }
  }

  void append_others() {
    const TermLayout &others = plan_.layout.others;
    if (others.targets.empty()) return;
    append(others.targets, plan_.terms.targets);
    append(others.adapters, plan_.terms.adapters);
    append(others.terms, plan_.terms.terms);
    append(others.norms, plan_.terms.norms);
    append(others.tiles, plan_.tiles);
    append(others.norm_tiles, plan_.norms);
    plan_.stages.resize(others.stages.size());
    for (std::size_t stage = 0; stage < others.stages.size(); ++stage)
      append(others.stages[stage], plan_.stages[stage]);
    plan_.passes.resize(others.passes.size());
    for (std::size_t pass = 0; pass < others.passes.size(); ++pass)
      for (std::size_t kind = 0; kind < kConeKinds; ++kind) append(others.passes[pass][kind], plan_.passes[pass][kind]);
  }

  void append_products() {
    const Products &products = plan_.layout.products;
    append(products.rotations, plan_.rotations);
    for (const RotationTask &task : products.rotations)
      if (wants_norm(task)) plan_.limited_rotations = static_cast<std::int32_t>(products.rotations.size());
    append(products.rotation_blocks, plan_.rotation_blocks);
    append(products.dora_factors, plan_.factors);
    append(products.dora_factor_blocks, plan_.factor_blocks);
    const bool any = !products.contractions[0].empty() || !products.contractions[1].empty();
    plan_.contractions.resize(any ? kContractionStages : 0);
    for (std::size_t stage = 0; stage < plan_.contractions.size(); ++stage) {
      const std::vector<Contraction> &contractions = products.contractions[stage];
      if (contractions.empty()) continue;
      const std::size_t all = block_.append(contractions);
      for (std::size_t kind = 0; kind < kContractionKinds; ++kind) {
        ContractionRun &run = plan_.contractions[stage][kind];
        const PieceCounter pieces = products.pieces(stage, static_cast<ContractionKind>(kind));
        std::copy_n(contractions.begin(), std::min<std::size_t>(contractions.size(), kCarriedContractions),
                    run.carried);
        run.first_of_second = contractions.size() > 1 ? pieces.first[1] : pieces.pieces;
        point(run.contractions, all);
        append(pieces, run.schedule);
      }
    }
  }

  WeightPlan &plan_;
  Block block_;
  std::vector<std::function<void(const char *)>> places_;
};

/// Its sums of squares take a launch of their own.
bool norms_apart(const StreamKind &kind) { return kind.dora && kind.cluster == 0; }

bool needs_staging(const WeightPlan &plan) { return plan.multiplier_count > kInlineMultipliers; }

std::size_t staging_size(const WeightPlan &plan) {
  return needs_staging(plan) ? aligned(static_cast<std::size_t>(plan.multiplier_count) * sizeof(float)) : 0;
}

void describe_run(WeightPlan &plan) {
  plan.info.launches = static_cast<std::int32_t>(plan.panels.size() + plan.streams.size() + plan.base_products.size() +
                                                 plan.tables.size() + plan.elementwise_rows.size());
  if (needs_staging(plan)) plan.info.launches += store_launches(plan.multiplier_count);
  for (const auto &stage : plan.contractions)
    for (const ContractionRun &run : stage) plan.info.launches += run.schedule.pieces > 0;
  for (const ElementwiseRun &run : plan.elementwise) plan.info.launches += run.tiles.pieces > 0;
  for (const auto &target : plan.flat) plan.info.launches += target.has_value();
  plan.info.launches += (plan.limited_rotations > 0) + (plan.rotation_blocks.pieces > 0);
  for (const Schedule &schedule : plan.stages) plan.info.launches += schedule.pieces > 0;
  for (const auto &pass : plan.passes)
    for (const Schedule &schedule : pass) plan.info.launches += schedule.pieces > 0;
  for (const Schedule *schedule : {&plan.norms, &plan.factor_blocks, &plan.tiles})
    plan.info.launches += schedule->pieces > 0;
  for (const StreamGroup &group : plan.layout.streams) plan.info.launches += norms_apart(group.kind);
  plan.info.workspace_size = staging_size(plan) + plan.layout.products.workspace_size;
}

/// Where the kernels find the multipliers: in device memory as it is, by value, or staged in the workspace.
Multipliers place_multipliers(const WeightPlan &plan, const ops::RunOptions &options, const Launch &on) {
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
  check(launch_store_multipliers(host, plan.multiplier_count, staged, on), "storing multipliers");
  placed.device = staged;
  return placed;
}

char *products_of(const WeightPlan &plan, const ops::RunOptions &options) {
  return static_cast<char *>(options.workspace) + staging_size(plan);
}

void run_products(const WeightPlan &plan, char *workspace, const Launch &on) {
  for (const auto &stage : plan.contractions)
    for (std::size_t kind = 0; kind < kContractionKinds; ++kind)
      if (const ContractionRun &run = stage[kind]; run.schedule.pieces > 0)
        check(launch_contractions(static_cast<ContractionKind>(kind), run, workspace, on), "launching small products");
}

void run_base_products(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers, const Launch &on) {
  for (BaseRun run : plan.base_products) {
    run.op = op;
    run.multipliers = multipliers;
    check(launch_base_products(run, on), "launching a weight kernel");
  }
}

void run_elementwise(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers, const char *workspace,
                     const Launch &on) {
  for (std::size_t k = 0; k < kElementwiseKinds; ++k) {
    if (plan.flat[k]) check(launch_flat(*plan.flat[k], op, multipliers, workspace, on), "launching a weight kernel");
    if (plan.elementwise[k].tiles.pieces == 0) continue;
    ElementwiseRun run = plan.elementwise[k];
    run.op = op;
    run.multipliers = multipliers;
    run.workspace = workspace;
    check(launch_elementwise(elementwise_kind(static_cast<int>(k)), run, on), "launching a weight kernel");
  }
}

void run_panels(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers, const Launch &on) {
  for (std::size_t g = 0; g < plan.panels.size(); ++g) {
    PanelRun run = plan.panels[g];
    run.op = op;
    run.multipliers = multipliers;
    check(launch_panels(plan.layout.panels[g].kind, run, on), "launching a weight kernel");
  }
}

void run_elementwise_rows(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers,
                          const char *workspace, const Launch &on) {
  for (std::size_t g = 0; g < plan.elementwise_rows.size(); ++g) {
    ElementwiseRowsRun run = plan.elementwise_rows[g];
    run.op = op;
    run.multipliers = multipliers;
    run.workspace = workspace;
    check(launch_elementwise_rows(plan.layout.elementwise.rows[g].kind, run, on), "launching a weight kernel");
  }
}

void run_streams(const WeightPlan &plan, StreamPass pass, ops::WeightOp op, const Multipliers &multipliers,
                 char *workspace, const Launch &on) {
  for (std::size_t g = 0; g < plan.streams.size(); ++g) {
    const StreamKind &kind = plan.layout.streams[g].kind;
    if (pass == StreamPass::kNorms && !norms_apart(kind)) continue;
    if (kind.form == StreamForm::kRotation) {
      TurnRun turn = plan.turns[g];
      turn.op = op;
      turn.multipliers = multipliers;
      turn.workspace = workspace;
      check(launch_turns(kind.bf16_factors, turn, on), "launching rotations");
      continue;
    }
    const StreamRun run{op, pass, multipliers, workspace};
    const cudaError_t status = kind.cluster > 0
                                   ? launch_rows(kind, plan.row_shapes[g], plan.streams[g], plan.only[g], run, on)
                                   : launch_stream(kind, plan.streams[g], plan.only[g], plan.stream_blocks[g], run, on);
    check(status, "launching a streaming kernel");
  }
}

void run_rotations(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers, char *workspace,
                   const Launch &on) {
  if (plan.layout.products.rotations.empty()) return;
  const RotationRun run{plan.rotations, workspace, op, multipliers};
  if (plan.limited_rotations > 0 || plan.rotation_blocks.pieces > 0)
    check(launch_rotations(run, plan.limited_rotations, plan.rotation_blocks, on), "launching rotations");
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage)
    if (plan.stages[stage].pieces > 0)
      check(launch_stage(run, plan.stages[stage], static_cast<int>(stage), on), "launching rotations");
  for (std::size_t pass = 0; pass < plan.passes.size(); ++pass)
    for (std::size_t kind = 0; kind < kConeKinds; ++kind)
      if (const Schedule &pieces = plan.passes[pass][kind]; pieces.pieces > 0)
        check(launch_cones(static_cast<ConeKind>(kind), run, pieces, static_cast<int>(pass),
                           plan.layout.others.cone_rows, on),
              "launching rotations");
}

/// Sums of squares of what DoRA normalises, and the factors that they give.
void run_norms(const WeightPlan &plan, ops::WeightOp op, const Multipliers &multipliers, char *workspace,
               const Launch &on) {
  if (plan.factor_blocks.pieces == 0) return;
  run_streams(plan, StreamPass::kNorms, op, multipliers, workspace, on);
  if (plan.norms.pieces > 0)
    check(launch_norms({plan.terms, workspace, op, multipliers}, plan.norms, on), "launching norms");
  check(launch_factors(plan.factors, plan.factor_blocks, multipliers, workspace, on), "launching norms");
}

void check_run(const WeightPlan &plan, const ops::RunOptions &options) {
  require(options.op == ops::WeightOp::kDiff || plan.layout.has_all_bases,
          "merging needs a base for every weight, and this batch has weights without one");
  if (options.op == ops::WeightOp::kUnmerge && plan.layout.reads_base)
    fail(LYC_ERROR_UNSUPPORTED, "what depends on the pristine weight cannot be unmerged");
  const bool stages = needs_staging(plan) && !(options.multipliers && options.multipliers_on_device);
  require(options.workspace || (!stages && plan.layout.products.workspace_size == 0), "the workspace is missing; ",
          plan.info.workspace_size, " bytes are needed");
}

/// Lay out what this device can take: the larger a cluster, the less sure it is to fit.
void lay_out(WeightPlan &plan, const ops::WeightBatch &batch) {
  const bool copy_engine = plan.context->encode_map != nullptr;
  for (int largest_cluster : {kMostCluster, kPortableCluster, 0}) {
    plan.layout = cuda::lay_out(batch, {copy_engine, largest_cluster, plan.context->shared_bytes});
    plan.row_shapes.assign(plan.layout.streams.size(), {});
    bool fits = true;
    for (std::size_t g = 0; g < plan.row_shapes.size(); ++g) {
      const StreamGroup &group = plan.layout.streams[g];
      if (group.kind.cluster == 0) continue;
      check(fit_rows(group.kind, group.boxes(), &plan.row_shapes[g]), "asking how many clusters fit");
      fits = fits && plan.row_shapes[g].clusters > 0;
    }
    plan.base_products.assign(plan.layout.base_products.size(), {});
    for (std::size_t g = 0; g < plan.base_products.size(); ++g) {
      BaseRun &run = plan.base_products[g];
      run.cluster = plan.layout.base_products[g].cluster;
      check(resident_base_clusters(run.cluster, &run.clusters), "asking how many clusters fit");
      fits = fits && run.clusters > 0;
    }
    if (fits) return;
  }
}

}  // namespace

WeightPlan *prepare(Context &context, const ops::WeightBatch &batch) {
  const DeviceScope scope(context);
  auto plan = std::make_unique<WeightPlan>();
  plan->context = &context;
  plan->multiplier_count = batch.multiplier_count;
  lay_out(*plan, batch);
  for (std::size_t g = 0; g < plan->layout.streams.size(); ++g) {
    StreamGroup &group = plan->layout.streams[g];
    int blocks = 0;
    if (turns_rows(group)) {
      plan->stream_blocks.push_back(0);
      continue;
    }
    if (group.kind.cluster == 0)
      check(resident_blocks(group.kind, &blocks), "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    plan->stream_blocks.push_back(blocks * context.multiprocessors);
    schedule(group, group.kind.cluster == 0 ? plan->stream_blocks.back() : plan->row_shapes[g].clusters);
  }
  for (std::size_t g = 0; g < plan->base_products.size(); ++g)
    schedule(plan->layout.base_products[g], plan->base_products[g].clusters);
  for (TargetGroup &group : plan->layout.groups) {
    int blocks = 0;
    check(resident_blocks(group.kind, group.chunk_capacity, &blocks), "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    schedule(group, std::int64_t{context.multiprocessors} * blocks * kWarpsPerBlock);
  }
  plan->layout.products.cut(context.multiprocessors);
  for (const auto &pass : plan->layout.others.passes)
    for (std::size_t kind = 0; kind < kConeKinds; ++kind)
      if (pass[kind].pieces > 0) check(allow_cones(static_cast<ConeKind>(kind)), "cudaFuncSetAttribute");
  Uploader(*plan).upload();
  describe_run(*plan);
  return plan.release();
}

void run(WeightPlan &plan, const ops::RunOptions &options) {
  check_run(plan, options);
  const DeviceScope scope(*plan.context);
  const Launch on{static_cast<cudaStream_t>(options.stream), plan.context->encode_map != nullptr};
  const Multipliers multipliers = place_multipliers(plan, options, on);
  char *workspace = products_of(plan, options);
  run_products(plan, workspace, on);
  run_rotations(plan, options.op, multipliers, workspace, on);
  run_norms(plan, options.op, multipliers, workspace, on);
  run_panels(plan, options.op, multipliers, on);
  run_streams(plan, StreamPass::kMerge, options.op, multipliers, workspace, on);
  run_base_products(plan, options.op, multipliers, on);
  for (std::size_t g = 0; g < plan.tables.size(); ++g)
    check(launch_low_rank(plan.layout.groups[g].kind, {plan.tables[g], options.op, multipliers, workspace}, on),
          "launching a weight kernel");
  run_elementwise(plan, options.op, multipliers, workspace, on);
  run_elementwise_rows(plan, options.op, multipliers, workspace, on);
  if (plan.tiles.pieces > 0)
    check(launch_terms({plan.terms, workspace, options.op, multipliers}, plan.tiles, on), "launching a weight kernel");
}

std::string explain(const WeightPlan &plan) {
  return concat(describe(plan.layout), plan.info.launches, " launches, ", plan.info.workspace_size,
                " bytes of workspace\n");
}

void release(WeightPlan *plan) noexcept {
  if (!plan) return;
  if (plan->memory) {
    const DeviceScope scope(*plan->context);
    release_tables(*plan->context, plan->memory);
  }
  delete plan;
}

}  // namespace lyc::cuda
