#include <CLI/CLI.hpp>
#include <cstdio>
#include <set>

#include "program.hpp"

namespace program {
namespace {

using Json = nlohmann::ordered_json;

struct InspectArguments {
  std::string file;
  int threads = 0;
  bool json = false;
};

std::string set_text(const std::set<double> &values) {
  std::string text;
  char number[32];
  for (double value : values) {
    std::snprintf(number, sizeof number, "%g", value);
    text += (text.empty() ? "" : ", ") + std::string(number);
  }
  return text;
}

void print_adapter(const Json &report) {
  std::set<double> ranks, alphas;
  double largest = 0;
  std::string largest_layer;
  for (const Json &layer : report["layers"]) {
    if (layer.contains("rank")) ranks.insert(layer["rank"].get<double>());
    if (layer.contains("alpha") && layer["alpha"].is_number()) alphas.insert(layer["alpha"].get<double>());
    if (layer.contains("norm") && layer["norm"].is_number() && layer["norm"].get<double>() > largest) {
      largest = layer["norm"].get<double>();
      largest_layer = layer["layer"];
    }
  }
  std::printf("dialect     %s\nlayers      %zu (%s)\n", printable(report["dialect"]).c_str(), report["layers"].size(),
              counts_text(report["algorithms"]).c_str());
  if (!ranks.empty()) std::printf("ranks       %s\n", set_text(ranks).c_str());
  if (!alphas.empty()) std::printf("alphas      %s\n", set_text(alphas).c_str());
  if (!largest_layer.empty()) std::printf("largest     %s, norm %g\n", printable(largest_layer).c_str(), largest);
  for (const Json &layer : report["layers"]) {
    std::printf("  %-6s %5lld x %-6lld", printable(layer["algorithm"]).c_str(), layer["out"].get<long long>(),
                layer["columns"].get<long long>());
    if (layer.contains("rank")) std::printf(" rank %-4lld", layer["rank"].get<long long>());
    std::printf(" scale %-8g", layer["scale"].get<double>());
    if (layer.contains("norm") && layer["norm"].is_number()) std::printf(" norm %-10.4g", layer["norm"].get<double>());
    if (layer.contains("dora")) std::printf(" dora(%s)", printable(layer["dora"]).c_str());
    std::printf(" %s\n", printable(layer["layer"]).c_str());
  }
  for (const Json &leftover : report["leftovers"])
    std::printf("  not used   %s: %s\n", printable(leftover["keys"][0]).c_str(), printable(leftover["reason"]).c_str());
  for (const Json &anomaly : report["anomalies"]) std::printf("  note       %s\n", printable(anomaly).c_str());
}

void print_report(const Json &report) {
  std::printf("%s: %s\n", printable(report["path"]).c_str(), printable(report["kind"]).c_str());
  std::printf("tensors     %zu, %s elements", report["tensors"].get<size_t>(),
              std::to_string(report["elements"].get<unsigned long long>()).c_str());
  for (const auto &[dtype, bytes] : report["bytes"].items())
    std::printf("; %s %s", dtype.c_str(), bytes_text(bytes.get<double>()).c_str());
  std::printf("\n");
  if (report["kind"] == "adapter") print_adapter(report);
}

int run_inspect(const InspectArguments &arguments) {
  const Context context = make_context(arguments.threads);
  lyc_report *handle = nullptr;
  check(lyc_inspect_file(context.get(), arguments.file.c_str(), &handle));
  const Report report(handle);
  if (arguments.json)
    std::printf("%s\n", lyc_report_json(report.get()));
  else
    print_report(Json::parse(lyc_report_json(report.get())));
  return kDone;
}

}  // namespace

void add_inspect(CLI::App &app, int &exit_code) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App *inspect = app.add_subcommand("inspect", "Show what is in an adapter or model file.");
  inspect->add_option("FILE", arguments->file, "A .safetensors file, or a folder of a model")->required();
  inspect->add_option("--threads", arguments->threads, "CPU threads (default: all)")->check(CLI::Range(0, 4096));
  inspect->add_flag("--json", arguments->json, "Print the full report as JSON");
  inspect->callback([arguments, &exit_code] { exit_code = run_inspect(*arguments); });
}

}  // namespace program
