// tendon: pi0 and pi0.5 robot policies. Open a model on a backend, give it observations, get action
// chunks. Everything throws tendon::Error, whose message says what to do next.
//
//   tendon::Engine engine = tendon::Engine::open("demo");
//   tendon::Actions actions = engine.infer(tendon::demo_observation());
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tendon/error.h"
#include "tendon/types.h"

namespace tendon {

// One op type's share of the calls so far.
struct OpUse {
  std::string op;
  int64_t native_calls = 0, fallback_calls = 0, flops = 0, bytes = 0;
  double seconds = 0;
};

struct OpenedEngine;

class Engine {
 public:
  // `model`: "demo" (a small trained pi0), "demo:pi05", "synthetic:pi0", "synthetic:pi05" (random
  // weights of full size; with -small of small size), or a checkpoint folder (lerobot's
  // save_pretrained or openpi's PyTorch layout), or a file of convert(). Fault::checkpoint, usage
  // or backend on error.
  static Engine open(const std::string& model, const OpenOptions& options = {});

  // Fault::input for a bad observation; Fault::internal for actions that are not finite.
  Actions infer(const Observation& observation, const InferOptions& options = {});

  // Several rows in one call: each has the bytes of a call of its own where the backend's sums do
  // not depend on the number of rows (cpu, reference). Rows may differ in everything; those with
  // the same number of steps are denoised together. 1 to 64 rows; the errors of infer(), which
  // name the row.
  std::vector<Actions> infer_batch(std::span<const BatchRow> rows);

  // The model's velocity (noise - actions, by flow matching) at `noisy` [horizon, model
  // action_dim], normalised actions at time t from 1 (noise) to 0 (actions); the same shape
  // results. This is the network's one forward pass: infer() makes Euler steps along it.
  // Fault::input as infer(), and for another size, for values that are not finite and for t outside
  // of [0, 1].
  std::vector<float> velocity(const Observation& observation, std::span<const float> noisy,
                              double t);

  std::vector<std::string> cameras() const;       // names that Observation::images may use
  std::vector<std::string> action_names() const;  // one per action dimension
  int64_t state_dim() const;                      // values that Observation::state has, at most
  // At least as many; fewer than state_dim() where the statistics are wider than the robot.
  int64_t state_dim_min() const;
  int64_t horizon() const;
  int64_t model_dim() const;  // columns of normalised actions, padding included
  int64_t steps() const;      // Euler steps unless InferOptions says otherwise
  // Decisions taken while opening, one sentence each. What may make actions other than those of the
  // training begins with "warning: ".
  std::vector<std::string> notes() const;
  std::vector<OpUse> op_use() const;  // since open
  std::string backend() const;
  // "avx512vnni, int8 products (vpdpbusd, exact)", "TTNN library on a simulated Wormhole, bf16"
  std::string method() const;
  bool simulated() const;  // the device is: times are the host's, simulating it
  // Nothing where the backend does not tell: only ttnn does.
  std::optional<DeviceMemory> device_memory() const;
  double load_ms() const;  // what open took

  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

 private:
  friend OpenedEngine;
  explicit Engine(std::unique_ptr<OpenedEngine> parts);
  std::unique_ptr<OpenedEngine> parts_;
};

// What the policies "demo" and "demo:pi05" see where an episode begins: two pictures of a table
// with coloured objects, the gripper's place and opening, and "reach the ...".
Observation demo_observation();

// PNG, JPEG or PPM with three channels of 8 bits. Fault::input on error.
Image read_image(const std::string& path);

// Writes `model` as one file with weights packed for the cpu backend in options.precision (bf16
// when empty), configuration, statistics and tokenizer; Engine::open takes it and is ready in
// seconds. Ends by running both and comparing their actions byte by byte: Fault::verdict when they
// differ.
struct Converted {
  int64_t bytes = 0;
  double seconds = 0;  // without the comparison
};
Converted convert(const std::string& model, const std::string& out,
                  const OpenOptions& options = {});

// What the machine does at most with the multiply-add that `options` (backend, precision, isa,
// threads) would use, measured now. Takes a fraction of a second.
struct MachineLimits {
  std::string method;  // "avx512bf16, bf16 products"
  int threads = 0;
  double gflops = 0;  // 1e9 FLOP/s, 2 per multiply-add
  double gbytes = 0;  // 1e9 bytes/s read from memory
};
MachineLimits measure_limits(const OpenOptions& options = {});

// What is in a model, as JSON text: configuration, cameras, tensors by group with bytes, unused
// tensors, statistics, memory plan. Opens no backend.
std::string describe(const std::string& model, const OpenOptions& options = {});

// The model's sizes and its robot as JSON text in the form of tendon.json and --config FILE, ready
// to be saved and changed (docs/robots.md).
std::string tendon_json(const std::string& model, const OpenOptions& options = {});

std::vector<std::string> backends();  // names that OpenOptions::backend may take
std::vector<std::string> isas();      // names that OpenOptions::isa may take here, slowest first
std::string version();                // "0.1.0"

}  // namespace tendon
