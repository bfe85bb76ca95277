#include <CLI/CLI.hpp>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/resource.h>
#include <vector>

#include "program.hpp"

namespace program {
namespace {

using Json = nlohmann::ordered_json;

/// "cpu", "cuda" or "cuda:N".
std::string check_device(const std::string &device) {
  if (device == "cpu" || device == "cuda") return "";
  const std::string number = device.rfind("cuda:", 0) == 0 ? device.substr(5) : "";
  const bool digits = number.find_first_not_of("0123456789") == std::string::npos;
  return !number.empty() && number.size() <= 4 && digits ? "" : "'" + device + "' is not cpu, cuda or cuda:N";
}

struct MergeArguments {
  std::string base, output, device = "cpu";
  std::vector<std::string> adapters, multipliers, includes, excludes;
  lyc_dora_rule dora_rule = LYC_DORA_RULE_DEFAULT;
  lyc_dtype dtype = LYC_DTYPE_NONE;
  int threads = 0;
  bool allow_unmatched = false, force = false, json = false, quiet = false;
};

const std::map<std::string, lyc_dora_rule> kDoraRules = {
    {"interpolate", LYC_DORA_RULE_INTERPOLATE}, {"lycoris", LYC_DORA_RULE_LYCORIS}, {"peft", LYC_DORA_RULE_PEFT}};
const std::map<std::string, lyc_dtype> kDtypes = {
    {"keep", LYC_DTYPE_NONE}, {"f32", LYC_DTYPE_F32}, {"f16", LYC_DTYPE_F16}, {"bf16", LYC_DTYPE_BF16}};

float parse_multiplier(const std::string &argument, const std::string &number) {
  char *end = nullptr;
  const float value = std::strtof(number.c_str(), &end);
  if (number.empty() || std::isspace(static_cast<unsigned char>(number.front())) || *end != '\0' ||
      !std::isfinite(value))
    throw CLI::ValidationError("--multiplier " + argument, "'" + number + "' is not a number");
  return value;
}

/// "[PATTERN=]M": plain numbers are for all adapters, or one for each in their order; patterns for layers of any.
struct Multipliers {
  explicit Multipliers(const MergeArguments &arguments) {
    std::vector<float> plain;
    for (const std::string &argument : arguments.multipliers) {
      const std::size_t equals = argument.rfind('=');
      if (equals == std::string::npos) {
        plain.push_back(parse_multiplier(argument, argument));
      } else {
        if (equals == 0) throw CLI::ValidationError("--multiplier " + argument, "there is no pattern before '='");
        patterns.push_back(argument.substr(0, equals));
        by_pattern.push_back(parse_multiplier(argument, argument.substr(equals + 1)));
      }
    }
    if (plain.size() > 1 && plain.size() != arguments.adapters.size())
      throw CLI::ValidationError("--multiplier", "give one number, or one for each of the " +
                                                     std::to_string(arguments.adapters.size()) + " adapters");
    for (std::size_t i = 0; i < plain.size(); ++i)
      rules.push_back({nullptr, plain.size() == 1 ? -1 : static_cast<int32_t>(i), plain[i]});
    for (std::size_t i = 0; i < patterns.size(); ++i) rules.push_back({patterns[i].c_str(), -1, by_pattern[i]});
  }

  std::vector<std::string> patterns;
  std::vector<float> by_pattern;
  std::vector<lyc_multiplier_rule> rules;  // borrow from `patterns`
};

std::vector<const char *> pointers(const std::vector<std::string> &texts) {
  std::vector<const char *> list;
  for (const std::string &text : texts) list.push_back(text.c_str());
  return list;
}

double peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

void print_summary(const Json &report, const lyc_report_info &info) {
  for (const Json &adapter : report["adapters"])
    std::printf("%s: %s layers (%s)\n", printable(adapter["path"]).c_str(),
                std::to_string(adapter["layers"].get<int>()).c_str(), counts_text(adapter["algorithms"]).c_str());
  std::printf("merged %llu of %llu layers into %s", static_cast<unsigned long long>(info.matched_count),
              static_cast<unsigned long long>(info.layer_count), printable(report["base"]["path"]).c_str());
  if (info.excluded_count) std::printf(", %llu excluded", static_cast<unsigned long long>(info.excluded_count));
  if (info.unmatched_count) std::printf(", %llu unmatched", static_cast<unsigned long long>(info.unmatched_count));
  std::printf("\nwrote %s: %llu of %llu tensors changed, %s in %.2f s (%s/s), peak memory %s\n",
              printable(report["output"]["path"]).c_str(), static_cast<unsigned long long>(info.changed_count),
              static_cast<unsigned long long>(info.tensor_count),
              bytes_text(static_cast<double>(info.bytes_written)).c_str(), info.seconds,
              bytes_text(static_cast<double>(info.bytes_written) / info.seconds).c_str(),
              bytes_text(peak_memory()).c_str());
  for (const Json &layer : report["layers"])
    if (layer["outcome"] == "unmatched")
      std::printf("  unmatched  %s: %s\n", printable(layer["layer"]).c_str(), printable(layer["reason"]).c_str());
  for (const Json &adapter : report["adapters"])
    for (const Json &leftover : adapter["leftovers"])
      std::printf("  not used   %s: %s\n", printable(leftover["keys"][0]).c_str(),
                  printable(leftover["reason"]).c_str());
}

int run_merge(const MergeArguments &arguments) {
  const Multipliers multipliers(arguments);
  const std::vector<const char *> adapters = pointers(arguments.adapters), includes = pointers(arguments.includes),
                                  excludes = pointers(arguments.excludes);
  lyc_merge_options options;
  lyc_merge_options_init(&options, sizeof options);
  options.flags = (arguments.allow_unmatched ? LYC_ALLOW_UNMATCHED : 0u) | (arguments.force ? LYC_OVERWRITE : 0u);
  options.dora_rule = arguments.dora_rule;
  options.dtype = arguments.dtype;
  options.multipliers = multipliers.rules.data();
  options.multiplier_count = multipliers.rules.size();
  options.includes = includes.data();
  options.include_count = includes.size();
  options.excludes = excludes.data();
  options.exclude_count = excludes.size();

  const Context context = make_context(arguments.threads, arguments.device);
  lyc_report *handle = nullptr;
  {
    Progress progress(arguments.quiet || arguments.json);
    options.progress = Progress::callback;
    options.user_data = &progress;
    check(lyc_merge_files(context.get(), arguments.base.c_str(), adapters.data(), adapters.size(),
                          arguments.output.c_str(), &options, &handle));
  }
  const Report report(handle);
  lyc_report_info info;
  lyc_report_info_init(&info, sizeof info);
  check(lyc_report_get_info(report.get(), &info));
  if (arguments.json)
    std::printf("%s\n", lyc_report_json(report.get()));
  else if (!arguments.quiet)
    print_summary(Json::parse(lyc_report_json(report.get())), info);
  return kDone;
}

constexpr const char *kFooter =
    "Examples:\n"
    "  lycoris merge model.safetensors style.safetensors -o out.safetensors --multiplier 0.8\n"
    "  lycoris merge sdxl/ a.safetensors b.safetensors -o merged/ --multiplier 0.6 --multiplier 1.0\n"
    "  lycoris merge sdxl/ style.safetensors -o merged/ --multiplier 'text_encoder*=0.3' --exclude '*.ff.*'\n"
    "  lycoris merge flux/ style.safetensors -o merged/ --device cuda\n"
    "\n"
    "Patterns are shell wildcards over the whole name of a tensor of BASE or of a layer of ADAPTER.\n"
    "OUT appears only when all is written; on any failure, and on Ctrl-C, nothing is left behind.";

}  // namespace

void add_merge(CLI::App &app, int &exit_code) {
  auto arguments = std::make_shared<MergeArguments>();
  CLI::App *merge = app.add_subcommand("merge", "Merge adapters into a base model and write the result.");
  merge->footer(kFooter);
  merge
      ->add_option("BASE", arguments->base,
                   "Base model: a .safetensors file, an .index.json, a folder of shards or a diffusers folder")
      ->required();
  merge->add_option("ADAPTER", arguments->adapters, "Adapter files; several are added, with one rounding")->required();
  merge->add_option("-o,--output", arguments->output, "File to write; a folder where BASE is one")->required();
  merge
      ->add_option("-m,--multiplier", arguments->multipliers,
                   "Strength: a number for all adapters, one for each, or PATTERN=M for some layers (default 1)")
      ->type_name("[PATTERN=]M")
      ->take_all()
      ->allow_extra_args(false);
  merge->add_option("--include", arguments->includes, "Use only layers that match one of these")
      ->type_name("PATTERN")
      ->take_all()
      ->allow_extra_args(false);
  merge->add_option("--exclude", arguments->excludes, "Leave out layers that match one of these")
      ->type_name("PATTERN")
      ->take_all()
      ->allow_extra_args(false);
  merge->add_option("--dora-rule", arguments->dora_rule, "How a DoRA magnitude is blended (default: the file's own)")
      ->transform(CLI::CheckedTransformer(kDoraRules, CLI::ignore_case))
      ->type_name("interpolate|lycoris|peft");
  merge->add_option("--dtype", arguments->dtype, "Element type of the result (default keep)")
      ->transform(CLI::CheckedTransformer(kDtypes, CLI::ignore_case))
      ->type_name("keep|f32|f16|bf16");
  merge->add_option("--device", arguments->device, "Where to compute (default cpu); N counts from 0")
      ->check(CLI::Validator(check_device, ""))
      ->type_name("cpu|cuda[:N]");
  merge->add_option("--threads", arguments->threads, "CPU threads (default: all)")->check(CLI::Range(0, 4096));
  merge->add_flag("--allow-unmatched", arguments->allow_unmatched, "Adapter keys that find no weight are no error");
  merge->add_flag("--force", arguments->force, "Replace OUT if it exists");
  merge->add_flag("--json", arguments->json, "Print the full report as JSON");
  merge->add_flag("--quiet", arguments->quiet, "Print nothing but errors");
  merge->callback([arguments, &exit_code] { exit_code = run_merge(*arguments); });
}

}  // namespace program
