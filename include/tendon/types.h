// What a policy is opened with, what goes in and what comes out: plain data, no behaviour.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tendon {

// Bytes that a model will occupy, known before any weight is read.
struct MemoryPlan {
  int64_t weights = 0;      // in the backend's form; token embeddings of files stay on disk
  int64_t kv_cache = 0;     // keys and values of the longest prefix and the suffix
  int64_t activations = 0;  // the widest point of a call
  int64_t total() const { return weights + kv_cache + activations; }
};

struct LoadProgress {
  MemoryPlan plan;
  int64_t bytes = 0;   // of plan.weights, loaded so far
  double seconds = 0;  // since loading began
};

// How a ttnn device is opened and used. What is empty follows from device and precision; every
// other backend refuses it.
struct TtnnOptions {
  std::string grid;                  // of device "fake": columns by rows of cores, "8x7"
  std::optional<int64_t> device_id;  // of a chip: the library's number; 0
  std::string fidelity;              // of products: "lofi", "hifi2", "hifi3" or "hifi4"
  // Where results of calls lie: "dram"; "l1" while they fit; "auto": those of norms in L1.
  std::string memory;
  // What the device makes instead of the host: "patches" (pictures go up, as bytes where the model
  // sees bytes), "times" (their embedding), "patches,times".
  std::string on_device;
  bool operator==(const TtnnOptions&) const = default;
};

// Memory of a device in bytes. Its peaks are known of device "fake" alone.
struct DeviceMemory {
  int64_t dram = 0, dram_size = 0;
  int64_t l1 = 0, l1_size = 0;  // of one core
  std::optional<int64_t> dram_peak;
  std::optional<int64_t> l1_peak;  // with the buffers of the call that ran
};

struct OpenOptions {
  std::string backend = "cpu";  // see backends(), or "auto"
  std::string fallback;         // "reference": ops that the backend lacks run there and are counted
  std::string config;      // sizes and robot as a JSON file, or an openpi training config by name
  std::string tokenizer;   // SentencePiece .model or Hugging Face tokenizer.json; else beside the
                           // model
  std::string statistics;  // openpi's norm_stats.json, or "none": state and actions as they are
  std::string robot;       // "aloha", "droid", "libero" or "lerobot"; else from the model
  std::string asset;       // which assets/<id> of an openpi checkpoint, when there are several
  // Where the model is an adapter of PEFT without weights: the checkpoint folder with those that it
  // was trained on, or a demo. The model's own folder: the weights beside the adapter are those.
  std::string base;
  // Of an adapter: what B A is multiplied by, instead of what adapter_config.json says. 0: the
  // weights as they are, without the adapter.
  std::optional<double> lora_scale;
  std::optional<std::string> default_prompt;
  std::optional<bool> state_in_prompt;  // pi0.5: write the state into the prompt
  // What lerobot 0.4 did in another way; else as the checkpoint's files tell. pi0.5: the state is
  // padded before it is written into the prompt. Pictures that are not square: bars of -3, else -1.
  std::optional<bool> pad_state_in_prompt, dark_bars;
  bool adapt_to_pi = true;  // false: an ALOHA's joints and grippers stay as they are
  // cpu: bf16 (default), f32, int8; reference: f32, or bf16: synthetic weights rounded to it;
  // ttnn: bf16 (default), bfp8, and of single modules ("bf16,expert=bfp8"); cuda: bf16 (default),
  // f32.
  std::string precision;
  std::string isa;               // cpu: instruction set, "": the best; see `tendon version --json`
  uint64_t weights_seed = 2024;  // synthetic models
  // ttnn: "fake", "sim" or "chip"; "": what the next two allow. cuda: number of the GPU, "": 0.
  std::string device;
  std::string ttnn_python;  // ttnn: interpreter that has the ttnn package, for a chip
  std::string ttnn_sim;     // ttnn: folder that scripts/ttnn-sim makes, for the simulator
  TtnnOptions ttnn;
  // Modules of the policy that run on the fallback, as the audit names them ("suffix", "prefix"),
  // or "all".
  std::vector<std::string> host_modules;
  int threads = 0;  // 0: one per core; never changes a result
  // Bytes; a larger plan is Fault::memory. 0: what the machine has, where the host computes.
  int64_t max_memory = 0;
  std::function<void(const LoadProgress&)> progress;  // called before and while weights load
  std::function<void(const std::string&)> note;       // called with each of Engine::notes()
};

// The bytes of a picture: its own, or a view of bytes that somebody else keeps alive for as long as
// the view and its copies are read.
class Pixels {
 public:
  Pixels() = default;
  Pixels(std::vector<uint8_t> own) : own_(std::move(own)) {}  // NOLINT: a vector is pixels
  static Pixels view(std::span<const uint8_t> bytes) {
    Pixels p;
    p.seen_ = bytes;
    return p;
  }

  bool is_view() const { return seen_.data() != nullptr; }
  std::span<const uint8_t> bytes() const { return is_view() ? seen_ : std::span(own_); }
  size_t size() const { return bytes().size(); }
  bool empty() const { return size() == 0; }
  const uint8_t* data() const { return bytes().data(); }
  uint8_t operator[](size_t i) const { return data()[i]; }
  const uint8_t* begin() const { return data(); }
  const uint8_t* end() const { return data() + size(); }

  // For writing. A view becomes a copy first: nobody else's bytes are ever changed.
  std::vector<uint8_t>& owned() {
    if (is_view()) own_.assign(seen_.begin(), seen_.end());
    seen_ = {};
    return own_;
  }

  friend bool operator==(const Pixels& a, const Pixels& b) {
    return std::ranges::equal(a.bytes(), b.bytes());
  }

 private:
  std::vector<uint8_t> own_;
  std::span<const uint8_t> seen_;
};

// 8-bit RGB picture, row 0 on top: rgb[3 * (row * width + column) + channel], or planar:
// rgb[(channel * height + row) * width + column]. At most 8192 rows and columns.
struct Image {
  int height = 0, width = 0;
  Pixels rgb;
  bool planar = false;
};

struct Observation {
  std::map<std::string, Image> images;  // by the robot's or the model's camera name
  std::optional<std::string> prompt;    // UTF-8; absent: the model's default prompt, if it has one
  std::vector<double> state;            // in the robot's own units and order
};

// The denoising times of the Euler steps, from 1 (noise) towards 0 (actions).
enum class TimeSequence {
  lerobot,      // t = 1 - k / steps, evaluated in double; time embedding in double
  lerobot_sum,  // as up to lerobot 0.4.2: t accumulated in float; time embedding in double
  openpi,       // t accumulated in float; time embedding in float
};

// How the weight of guided real-time chunking falls over the rows of the chunk (lerobot's names).
enum class GuidanceSchedule { zeros, ones, linear, exp };

// Unexecuted rows of the previous chunk, for guided real-time chunking (lerobot's RTCProcessor):
// the first rows of the new chunk are pulled towards them.
// Either `normalized` or `actions` is given.
struct PreviousChunk {
  std::vector<float> normalized;  // [rows, dim], cut from Actions::normalized
  // [rows, dim], cut from Actions::values, dim = Actions::dim. Relative actions are anchored anew
  // at the state of the observation; dims that the robot does not have are 0.
  std::vector<double> actions;
  int64_t rows = 0, dim = 0;  // at most horizon rows and the model's action_dim
  int64_t delay = 0;          // actions that will have been executed when the new chunk arrives
  int64_t execution_horizon = 10;  // rows that are guided at all
  GuidanceSchedule schedule = GuidanceSchedule::linear;
  float max_weight = 10.f;
};

struct InferOptions {
  uint64_t seed = 0;             // of the noise; the same seed gives the same bytes everywhere
  std::vector<float> noise;      // [horizon, model action_dim] instead of the seed, N(0, 1)
  std::optional<int64_t> steps;  // Euler steps, 1 to 1000; absent: the model's own
  std::optional<TimeSequence> sequence;  // absent: the model's own
  std::optional<PreviousChunk> previous;
  // Called before every operation, on the calling thread. What it throws ends the call and comes
  // out of it; the engine stays usable. {}: a call that has begun cannot be stopped.
  std::function<void()> poll;
};

// One row of Engine::infer_batch(). Rows with the same observation (the same object) share its
// prefix: each further row costs its denoising alone.
struct BatchRow {
  const Observation* observation = nullptr;  // must outlive the call
  InferOptions options;
};

// Times of one call in milliseconds.
struct StageTimes {
  double preprocess_ms = 0, vision_ms = 0, prefill_ms = 0, denoise_ms = 0, postprocess_ms = 0;
  double total_ms = 0;
  // Parts of preprocess_ms: resizing and cutting into patches, with their upload; state and tokens;
  // noise and previous chunk; tables of the denoising times, made at their first use.
  double pictures_ms = 0, prompt_ms = 0, noise_ms = 0, tables_ms = 0;
};

// Arithmetic and memory traffic of one call: FLOPs at 2 per multiply-add; bytes of weights and
// activations that the ops read and wrote.
struct StageWork {
  int64_t vision_flops = 0, prefill_flops = 0, denoise_flops = 0;
  int64_t vision_bytes = 0, prefill_bytes = 0, denoise_bytes = 0;
  int64_t skipped_flops = 0;  // that an implementation without compaction and reuse would add
  int64_t prefix_tokens = 0;
};

struct Actions {
  int64_t horizon = 0, dim = 0;
  std::vector<double> values;  // [horizon, dim], in the robot's units
  int64_t model_dim = 0;
  std::vector<float> normalized;  // [horizon, model_dim], before post-processing
  // Per action dim, q01 and q99 of the training data in the robot's units at this observation's
  // state; per state value, 1 where it lies outside q01..q99. Empty where the statistics do not
  // tell. For guards and displays: `values` does not depend on them.
  std::vector<double> low, high;
  std::vector<uint8_t> state_outside;
  StageTimes times;  // of the whole call, also where it had several rows
  StageWork work;
  std::vector<std::string> warnings;  // a cut prompt, an absent camera, ...
};

}  // namespace tendon
