// lycoris: merge and inspect adapter files.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "program.hpp"

namespace program {

Context make_context(int threads, const std::string &device) {
  lyc_context_options options;
  lyc_context_options_init(&options, sizeof options);
  options.threads = threads;
  const std::string::size_type colon = device.find(':');
  if (device.substr(0, colon) == "cuda") options.device_type = LYC_DEVICE_CUDA;
  if (colon != std::string::npos) options.device_index = std::stoi(device.substr(colon + 1));
  lyc_context *context = nullptr;
  check(lyc_context_create(&options, &context));
  return Context(context);
}

std::string printable(std::string text) {
  for (char &c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}

std::string bytes_text(double bytes) {
  static constexpr const char *kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000 && unit < 4; ++unit) bytes /= 1000;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

std::string counts_text(const nlohmann::ordered_json &counts) {
  std::string text;
  for (const auto &[name, count] : counts.items())
    text += (text.empty() ? "" : ", ") + name + " " + std::to_string(count.get<int>());
  return text;
}

}  // namespace program

int main(int argc, char **argv) {
  using namespace program;
  CLI::App app("Merge and inspect LoRA, LoCon, LoHa, LoKr and DoRA adapter files.", "lycoris");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("lycoris ") + lyc_version_string());
  app.footer(
      "Run 'lycoris merge --help' or 'lycoris inspect --help' for more.\n"
      "Exit status: 0 done, 1 failed, 2 wrong usage.");
  int exit_code = kDone;
  add_merge(app, exit_code);
  add_inspect(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success &success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError &error) {
    std::fprintf(stderr, "lycoris: %s\nRun 'lycoris --help' for the usage.\n", error.what());
    return kWrongUsage;
  } catch (const Failure &failure) {
    std::fprintf(stderr, "lycoris: %s\n", printable(failure.message).c_str());
    return kFailed;
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    std::perror("lycoris: cannot write to the standard output");
    return kFailed;
  }
  return exit_code;
}
