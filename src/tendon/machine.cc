#include "tendon/machine.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backends/cpu/cpu.h"
#include "tendon/tendon.h"
#include "tensor/check.h"
#include "tensor/parallel.h"
#include "tensor/resident_memory.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

struct MachineFact {
  std::string what;  // "instruction sets", "TTNN library"
  bool there = false;
  std::string found;  // what was seen, with numbers
  std::string get;    // how to get it, one line; empty where there is nothing to do
};

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// "MemAvailable" and such, in GB.
double memory_gb(const std::string& field) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(field + ":")) return std::stod(line.substr(field.size() + 1)) / 1e6;
  return 0;
}

// What a program prints, without its complaints; empty when it fails.
std::string output_of(const std::string& program, const std::string& argument) {
  const auto quoted = [](const std::string& text) {
    std::string out = "'";
    for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
    return out + "'";
  };
  const std::string command = quoted(program) + " -c " + quoted(argument) + " 2>/dev/null";
  FILE* pipe = ::popen(command.c_str(), "r");
  if (!pipe) return {};
  std::string text;
  std::array<char, 256> part{};
  while (std::fgets(part.data(), part.size(), pipe)) text += part.data();
  const bool ok = ::pclose(pipe) == 0;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return ok ? text : std::string();
}

MachineFact instruction_sets() {
  const std::vector<std::string> sets = isas();
  return {"instruction sets", true, fmt::format("{}", fmt::join(sets, ", ")),
          sets.back() == "plain" ? "a processor with AVX2 or newer is several times as fast" : ""};
}

MachineFact products(Precision precision) {
  return {fmt::format("{} products", name(precision)), true,
          compare_cpu_isas(precision) + " GFLOP/s per thread", ""};
}

MachineFact memory() {
  const double total = memory_gb("MemTotal"), free = memory_gb("MemAvailable");
  return {"memory", free > 8,
          fmt::format("{:.1f} GB, {:.1f} GB available, {} cores", total, free, hardware_threads()),
          free > 8 ? "" : "a full-size model needs 5.4 GB (bf16) or 3.5 GB (int8)"};
}

// Those of one converted file have its pages once in memory.
MachineFact processes() {
  std::vector<ResidentMemory> all;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/proc", none)) {
    const std::string pid = entry.path().filename().string();
    if (pid == std::to_string(::getpid()) || first_line(entry.path() / "comm") != "tendon")
      continue;
    if (const auto memory = resident_memory(pid)) all.push_back(*memory);
  }
  double fair = 0, most = 0;
  for (const ResidentMemory& memory : all) {
    fair += static_cast<double>(memory.fair_bytes) / 1e9;
    most = std::max(most, static_cast<double>(memory.private_bytes) / 1e9);
  }
  return {"tendon processes", true,
          fmt::format("{}, {:.2f} GB together, at most {:.2f} GB of one are its own", all.size(),
                      fair, most),
          ""};
}

MachineFact nvidia() {
  const bool there = fs::exists("/dev/nvidia0");
  return {
      "NVIDIA GPU", there, there ? first_line("/proc/driver/nvidia/version") : "no /dev/nvidia0",
      TENDON_HAS_CUDA ? ""
                      : "this build has no cuda backend: it was configured without the toolkit"};
}

MachineFact chip() {
  std::error_code none;
  int64_t chips = 0;
  for (const auto& entry : fs::directory_iterator("/dev/tenstorrent", none))
    chips += !entry.is_directory(none);
  return {"Tenstorrent chip", chips > 0,
          chips > 0 ? fmt::format("{} in /dev/tenstorrent", chips) : "no /dev/tenstorrent",
          chips > 0 ? "" : "needs a card and Tenstorrent's kernel driver (tt-kmd)"};
}

MachineFact simulator(const OpenOptions& o) {
  const fs::path folder = o.ttnn_sim.empty() ? "build/ttnn-sim" : o.ttnn_sim;
  const bool there = fs::exists(folder / "environment");
  return {"TTNN library on a simulated Wormhole", there,
          there ? folder.string() : folder.string() + " is not there",
          there ? "" : "scripts/ttnn-sim makes it (x86-64, Python 3.12 or 3.10, 1.4 GB)"};
}

MachineFact library(const OpenOptions& o, const MachineFact& sim) {
  const std::string python = !o.ttnn_python.empty() ? o.ttnn_python
                             : sim.there            ? sim.found + "/venv/bin/python"
                                                    : "python3";
  const std::string version =
      output_of(python, "import importlib.metadata as m; print(m.version('ttnn'))");
  return {"TTNN library", !version.empty(),
          version.empty() ? fmt::format("{} has no package ttnn", python)
                          : fmt::format("ttnn {} in {}", version, python),
          version.empty() ? "pip install ttnn (Python 3.12 or 3.10) and --ttnn-python PYTHON" : ""};
}

}  // namespace

nlohmann::ordered_json examine_machine(const OpenOptions& o) {
  nlohmann::ordered_json json{{"version", version()}};
  const MachineFact sim = simulator(o), ttnn = library(o, sim), card = chip(), gpu = nvidia();
  for (const MachineFact& f :
       {instruction_sets(), products(Precision::f32), products(Precision::bf16),
        products(Precision::int8), memory(), processes(), gpu, ttnn, sim, card})
    json["machine"].push_back(
        {{"what", f.what}, {"there", f.there}, {"found", f.found}, {"get", f.get}});
  // `why`: how it is run, or why it cannot be.
  const auto add_test = [&json](const char* name, bool runs, const std::string& why) {
    json["tests"].push_back({{"name", name}, {"runs", runs}, {"why", why}});
  };
  add_test("host", true, "unit, op and model tests on reference and cpu: scripts/test");
  add_test("fake device", true, "the ttnn backend on a model of the device: scripts/test");
  add_test("simulator", sim.there, sim.there ? "ctest --test-dir build/release -L sim" : sim.get);
  const double free = memory_gb("MemAvailable");
  add_test(
      "full size", free >= 16,
      free >= 16 ? "scripts/test --all" : fmt::format("needs 16 GB, {:.1f} are available", free));
  add_test("chip", card.there && ttnn.there,
           !card.there   ? card.get
           : !ttnn.there ? ttnn.get
                         : "tendon validate --backend ttnn --ttnn-python PYTHON");
  add_test("cuda", gpu.there && TENDON_HAS_CUDA,
           !gpu.there         ? gpu.found
           : !TENDON_HAS_CUDA ? gpu.get
                              : "scripts/cuda");
  return json;
}

}  // namespace tendon
