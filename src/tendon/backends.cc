#include "tendon/backends.h"

#include <algorithm>
#include <charconv>

#include "backends/cpu/cpu.h"
#include "backends/cuda/cuda.h"
#include "backends/reference/reference.h"
#include "backends/ttnn/ttnn.h"
#include "tendon/tendon.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

struct Known {
  std::string name;
  std::string precision;  // by default
  std::vector<std::string> precisions;
};

const std::vector<Known>& known() {
  static const std::vector<Known> kKnown = {{"cpu", "bf16", {"f32", "bf16", "int8"}},
                                            {"reference", "f32", {"f32", "bf16"}},
                                            {"ttnn", "bf16", {"bf16", "bfp8"}},
                                            {"cuda", "bf16", {"f32", "bf16"}}};
  return kKnown;
}

std::unique_ptr<tt::TtApi> open_device(const OpenOptions& o) {
  const std::string device = !o.device.empty()        ? o.device
                             : !o.ttnn_sim.empty()    ? "sim"
                             : !o.ttnn_python.empty() ? "chip"
                                                      : "";
  const TtnnOptions& t = o.ttnn;
  const bool fake = device == "fake";
  ensure(t.grid.empty() || fake || device.empty(), Fault::usage,
         "--grid {}: a chip and the simulator tell their own grid; --device fake takes one",
         t.grid);
  ensure(!t.device_id || !fake, Fault::usage,
         "--device-id {}: the model of the device is one; chips have numbers",
         t.device_id.value_or(0));
  if (fake) {
    tt::FakeOptions options{.threads = o.threads};
    if (!t.grid.empty()) {
      const tt::Grid grid = tt::grid_of(t.grid);
      options.grid_x = grid.x, options.grid_y = grid.y;
    }
    return tt::open_fake_device(options);
  }
  if (device == "sim") {
    ensure(!o.ttnn_sim.empty(), Fault::usage,
           "--device sim needs --ttnn-sim DIR, the folder that scripts/ttnn-sim makes");
    tt::WorkerOptions options = tt::simulator_options(o.ttnn_sim);
    options.device = t.device_id.value_or(0);
    return tt::open_worker(options);
  }
  if (device == "chip") {
    ensure(!o.ttnn_python.empty(), Fault::usage,
           "--device chip needs --ttnn-python PYTHON, an interpreter that has the ttnn package");
    return tt::open_worker({.python = o.ttnn_python,
                            .device = t.device_id.value_or(0),
                            .trace_region_bytes = 64 << 20});
  }
  ensure(device.empty(), Fault::usage, "--device {}: expected fake, sim or chip", device);
  fail(Fault::backend,
       "the ttnn backend needs a device: --ttnn-python PYTHON (an interpreter that has the ttnn "
       "package, and a chip), --ttnn-sim DIR (the TTNN library on a simulated Wormhole; "
       "scripts/ttnn-sim makes DIR), or --device fake (a model of the device inside tendon)");
}

std::unique_ptr<Kernels> open_cuda(const OpenOptions& o) {
  int number = 0;
  const auto [end, error] =
      std::from_chars(o.device.data(), o.device.data() + o.device.size(), number);
  ensure(o.device.empty() || (error == std::errc() && *end == 0 && number >= 0), Fault::usage,
         "--device {}: the cuda backend expects the number of a GPU, as nvidia-smi counts them",
         o.device);
#if TENDON_HAS_CUDA
  return make_cuda_backend(
      {.precision = o.precision == "f32" ? CudaPrecision::f32 : CudaPrecision::bf16,
       .device = number});
#else
  fail(Fault::backend,
       "this build has no cuda backend: it was configured without the CUDA toolkit; install it "
       "(12.8 or newer, nvcc on PATH) and configure again");
#endif
}

void refuse_ttnn_options(const OpenOptions& o) {
  const TtnnOptions& t = o.ttnn;
  for (const auto& [name, given] : {std::pair("grid", !t.grid.empty()),
                                    {"device-id", t.device_id.has_value()},
                                    {"fidelity", !t.fidelity.empty()},
                                    {"memory", !t.memory.empty()},
                                    {"on-device", !t.on_device.empty()}})
    ensure(!given, Fault::usage, "the {} backend has no --{}: it is an option of ttnn", o.backend,
           name);
}

// ttnn where its device is named, cuda where there is a GPU, else the processor.
std::string automatic(const OpenOptions& o) {
  if (!o.ttnn_python.empty() || !o.ttnn_sim.empty() || o.device == "fake") return "ttnn";
  try {
    if (o.precision != "int8") open_cuda(o);
    return o.precision == "int8" ? "cpu" : "cuda";
  } catch (const Error& e) {
    if (e.fault() != Fault::backend) throw;
    return "cpu";
  }
}

}  // namespace

OpenOptions resolved(OpenOptions o) {
  if (o.backend == "auto") o.backend = automatic(o);
  const auto found = std::ranges::find(known(), o.backend, &Known::name);
  ensure(found != known().end(), Fault::usage, "unknown backend '{}'; nearest: '{}'", o.backend,
         nearest(o.backend, backends()));
  if (o.precision.empty()) o.precision = found->precision;
  if (o.backend == "ttnn") {
    tt::use_of(o.precision, o.ttnn);
    ensure(o.ttnn.device_id.value_or(0) >= 0, Fault::usage, "--device-id {}: at least 0",
           o.ttnn.device_id.value_or(0));
    return o;
  }
  ensure(std::ranges::find(found->precisions, o.precision) != found->precisions.end(), Fault::usage,
         "the {} backend has no precision '{}'; there are: {}", o.backend, o.precision,
         fmt::join(found->precisions, ", "));
  refuse_ttnn_options(o);
  return o;
}

OpenOptions moved_to(OpenOptions o, const std::string& backend) {
  if (keeps_table(o)) o.device.clear(), o.ttnn = {};
  o.backend = backend;
  o.precision.clear();
  o.isa.clear();
  o.host_modules.clear();
  return o;
}

std::vector<std::pair<std::string, std::string>> device_facts(const OpenOptions& o) {
  const std::unique_ptr<tt::TtApi> device = open_device(o);
  const tt::Caps& c = device->caps();
  const DeviceMemory m = device->memory();
  return {{"device", c.description},
          {"library", fmt::format("ttnn {}", c.version)},
          {"arch", c.arch},
          {"grid", fmt::format("{}x{}, {} cores", c.grid_x, c.grid_y, c.grid_x * c.grid_y)},
          {"L1 per core", fmt::format("{} bytes, {} in use", m.l1_size, m.l1)},
          {"DRAM", fmt::format("{:.2f} GB, {:.2f} in use", 1e-9 * static_cast<double>(m.dram_size),
                               1e-9 * static_cast<double>(m.dram))},
          {"dispatch", c.fast_dispatch ? "fast: calls are recorded and replayed"
                                       : "slow: nothing is recorded"}};
}

bool keeps_table(const OpenOptions& o) { return o.backend == "ttnn" || o.backend == "cuda"; }

std::unique_ptr<Kernels> open_backend(const OpenOptions& o) {
  if (o.backend == "reference") return make_reference_backend({.threads = o.threads});
  if (o.backend == "cuda") return open_cuda(o);
  if (o.backend == "ttnn")
    return make_ttnn_backend(open_device(o), tt::use_of(o.precision, o.ttnn));
  return make_cpu_backend(
      {.threads = o.threads, .precision = precision_named(o.precision), .isa = o.isa});
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const Known& k : known()) names.push_back(k.name);
  return names;
}

}  // namespace tendon
