// What the mapping layer asks of a TTNN device, as plain data: 20 calls over opaque ids.
// Providers stay dumb: all knowledge of padding, layouts, masks and blocks is in the mapping layer.
// Names and meaning are those of the ttnn library; a native C++ provider fits without a change.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/kernels.h"
#include "tendon/types.h"

namespace tendon::tt {

constexpr int64_t kTile = 32;   // rows and columns of a tile
constexpr int64_t kBlock = 16;  // values of a row that share an exponent in bfp8

// Tiles of bf16 or, 16 values sharing an exponent, bfp8; ttnn: bfloat16, bfloat8_b, uint32, and, in
// tiles on their way to bf16, float32 and uint8.
enum class Format : uint8_t { bf16, bfp8, u32, f32, u8 };
enum class Layout : uint8_t { tile, row_major };
enum class Memory : uint8_t { dram, l1 };  // both interleaved
// Their names, in order.
constexpr std::array<std::string_view, 5> kFormats = {"bf16", "bfp8", "u32", "f32", "u8"};
constexpr std::array<std::string_view, 2> kLayouts = {"tile", "row_major"};
constexpr std::array<std::string_view, 2> kMemories = {"dram", "l1"};
template <size_t N, class Enum>
constexpr std::string_view name_in(const std::array<std::string_view, N>& names, Enum value) {
  return names[static_cast<size_t>(value)];
}

using Dims = std::array<int64_t, 4>;  // logical shape, outermost first
using TensorId = uint32_t;            // 0: no tensor

struct Spec {
  Dims dims{1, 1, 1, 1};
  Format format = Format::bf16;
  Layout layout = Layout::tile;
  Memory memory = Memory::dram;
  bool operator==(const Spec&) const = default;
};

inline int64_t divide_up(int64_t n, int64_t each) { return (n + each - 1) / each; }
inline int64_t tiles(int64_t n) { return divide_up(n, kTile); }
inline int64_t round_up(int64_t n) { return tiles(n) * kTile; }  // to whole tiles
inline int64_t count(const Dims& d) { return d[0] * d[1] * d[2] * d[3]; }
Dims padded(const Spec& spec);        // tile layout: the last two axes rounded up to whole tiles
int64_t byte_size(const Spec& spec);  // on the device, padding included
int64_t tile_bytes(Format format);
std::string to_string(const Spec& spec);  // "[1, 1, 64, 96] bf16 tile dram"
inline std::string_view name(Format format) { return name_in(kFormats, format); }

// The calls. x, y, w, ...: Request::inputs in this order. Everything runs on tile layout unless it
// says otherwise. Every output lies in Request::memory; its format is that of x, but linear and
// typecast give Request::format.
enum class Call : uint8_t {
  reshape,     // x to Request::dims; moves no data when the last two axes stay whole tiles
  slice,       // x from `begin` to `dims` (exclusive); any row or column
  pad,         // x to `dims` with zeros, at the end of each axis
  concat,      // inputs along `axis`; ragged pieces allowed; also in f32
  permute,     // x [a, b, c, d]: [a, c, b, d]
  typecast,    // x, of any format, to `format`
  linear,      // x [b, 1, m, k], w [1, 1, k, n], bias [1, 1, 1, n] or 0: activation(x w + bias)
  layer_norm,  // x, scale [1, 1, 1, n], shift: over the logical columns, epsilon `scalar`
  rms_norm,    // x, scale
  attention,   // q [b, h, m, d], k and v [b, g, n, d], mask [1, 1, m, n] added to the scores, or
               // 0; scores times `scalar`; never causal
  rotary,      // x [1, h, m, d], cos and sin [1, 1, m, d]: x cos + rotate_half(x) sin
  create_qkv_heads,  // x [b, 1, m, (heads + 2 kv_heads) d]: three outputs [b, heads, m, d]
  concat_heads,      // x [b, h, m, d]: [b, 1, m, h d]
  embedding,         // ids u32 row-major [1, 1, 1, n], table row-major [1, 1, v, k]: tiles
                     // [1, 1, n, k]
  add,               // x + y; an axis of y that is 1 is repeated
  multiply,          // x y, likewise; also in f32
  multiply_scalar,   // x scalar
  sin,
  cos,   // of x in f32
  copy,  // the values of x into the tensor y, of the same spec; no output
};
constexpr int kCallCount = static_cast<int>(Call::copy) + 1;

// What is known of a call without its sizes.
struct CallInfo {
  struct Input {
    std::string_view name;  // in messages
    bool may_be_bfp8 = true, may_be_absent = false;
  };
  std::string_view name;
  OpClass op_class = OpClass::utilities;
  std::vector<Input> inputs;  // of concat: one of any number
};
const CallInfo& info(Call call);
inline std::string_view name(Call call) { return info(call).name; }

// How many bits of its operands a product reads: of bf16's 8 (one of them hidden) lofi takes 7 of
// the left operand and 5 of the right one, hifi2 all of the right one; hifi3 leaves out the product
// of what lofi would have cut off both, hifi4 nothing.
enum class Fidelity : uint8_t { lofi, hifi2, hifi3, hifi4 };
constexpr std::array<std::string_view, 4> kFidelities = {"lofi", "hifi2", "hifi3", "hifi4"};

// ttnn's compute kernel configuration.
struct Compute {
  Fidelity fidelity = Fidelity::hifi4;
  bool f32_accumulate = true;  // fp32_dest_acc_en
};

// How a product is cut into blocks: MatmulMultiCoreReuseMultiCastProgramConfig, its 1D form for few
// rows, or the library's own choice. Counts of tiles.
struct Blocks {
  enum class Kind : uint8_t { library, multicast_2d, multicast_1d };
  Kind kind = Kind::library;
  int64_t grid_x = 0, grid_y = 0;
  int64_t k_block = 1;                     // in0_block_w
  int64_t subblock_m = 1, subblock_n = 1;  // out_subblock_h, out_subblock_w
  int64_t core_m = 1, core_n = 1;          // per_core_M, per_core_N
};

// SDPAProgramConfig: rows of q and of k and v per step, multiples of 32.
struct Chunks {
  int64_t q = 32, k = 32;
};

struct Request {
  Call call = Call::reshape;
  std::vector<TensorId> inputs;
  Dims begin{}, dims{};
  int axis = 0;
  int64_t heads = 0, kv_heads = 0;
  float scalar = 0;
  Format format = Format::bf16;
  Memory memory = Memory::dram;
  Activation activation = Activation::none;
  Compute compute;
  Blocks blocks;  // linear
  Chunks chunks;  // attention
};

// What the library makes of a legal call, one spec per output; an empty input is 0 in the request.
// A tensor in bfp8 that is not moved in whole tiles becomes bf16, and rotary fills the last tile.
using InputSpecs = std::span<const std::optional<Spec>>;
std::vector<Spec> output_specs(const Request& request, InputSpecs inputs);
// A reshape of x that only renames: y is the memory of x.
bool is_view(const Request& request, const Spec& x, const Spec& y);

struct Output {
  TensorId id = 0;
  Spec spec;  // what the library says it made
  const Dims& dims() const { return spec.dims; }
};

struct Caps {
  int64_t grid_x = 0, grid_y = 0;  // compute cores
  int64_t l1_bytes = 0;            // per core
  bool fast_dispatch = false;      // traces can be captured
  bool simulated = false;
  bool shapes_only = false;  // values are neither kept nor computed; upload takes none
  // "fake device", "TTNN library on a simulated Wormhole", "Tenstorrent hardware"
  std::string description;
  // What the library says of itself and the device.
  std::string arch, version;
  int64_t dram_bytes = 0;
};

// One device, used from one thread. Calls throw Error: Fault::internal when the library refuses the
// arguments, Fault::memory when DRAM or L1 are full, Fault::backend when the provider lacks the
// call, a deadline passed or the device is lost. After the last two every later call throws the
// same. Results of download are f32, the logical shape without padding.
class TtApi {
 public:
  virtual ~TtApi() = default;
  virtual const Caps& caps() const = 0;
  // The logical shape, row-major: the provider pads, rounds and packs them.
  virtual Output upload(const Spec& spec, std::span<const float> values) = 0;
  virtual void download(TensorId x, std::span<float> to) = 0;
  virtual std::vector<Output> run(const Request& request) = 0;
  // Everything between begin and end is recorded (and run by end); replay runs it again on the same
  // addresses. No upload or download may lie between.
  virtual void begin_trace() = 0;
  virtual TensorId end_trace() = 0;
  virtual void replay_trace(TensorId trace) = 0;
  virtual void release(TensorId x) noexcept = 0;  // a tensor or a trace
  virtual DeviceMemory memory() = 0;
};

// ---- Providers ----

// A model of a device in this process: the library's rules, formats, memory and traces.
struct FakeOptions {
  int64_t grid_x = 8, grid_y = 9;
  int64_t l1_bytes = 1'499'136;  // per core
  int64_t dram_bytes = 12LL << 30;
  bool fast_dispatch = true;
  bool compute = true;  // false: shapes, legality and memory only; downloads give zeros
  int threads = 0;      // 0: one per core; never changes a result
};
std::unique_ptr<TtApi> open_fake_device(const FakeOptions& options = {});

// The ttnn library: a Python process that holds it and one device.
struct WorkerOptions {
  std::string python;            // interpreter of an environment that has ttnn
  int64_t device = 0;            // the library's number of it
  double open_deadline_s = 120;  // starting the library and the device
  double call_deadline_s = 120;  // one call; a simulator compiles kernels during the first
  int64_t trace_region_bytes = 0;
  // Environment of the worker process only, "NAME=value" (TT_METAL_SIMULATOR, ...).
  std::vector<std::string> environment;
};
// Throws Error(Fault::backend) when the interpreter, the library or the device is missing, naming
// what was tried and what to install.
std::unique_ptr<TtApi> open_worker(const WorkerOptions& options);

// Options that open the TTNN library on a simulated Wormhole, from a folder made by
// scripts/ttnn-sim: its interpreter, and the lines of its file `environment`. Throws
// Error(Fault::backend) when the folder does not hold both.
WorkerOptions simulator_options(const std::string& folder);

}  // namespace tendon::tt
