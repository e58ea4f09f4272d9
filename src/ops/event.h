// What ran: one event per executed op, from which counters, audits and tables of times are sums.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

namespace tendon {

// Every op and its class: the one list of them.
#define TENDON_OPS(OP)        \
  OP(upload, utilities)       \
  OP(download, utilities)     \
  OP(prepare, utilities)      \
  OP(linear, linear)          \
  OP(gated_linear, linear)    \
  OP(layer_norm, norm)        \
  OP(rms_norm, norm)          \
  OP(qkv, linear)             \
  OP(attention, attention)    \
  OP(embed, embedding)        \
  OP(add_scaled, elementwise) \
  OP(multiply, elementwise)   \
  OP(concat_rows, concat)     \
  OP(slice_rows, utilities)   \
  OP(write_rows, utilities)   \
  OP(patches, utilities)      \
  OP(embed_times, embedding)

#define TENDON_OP(op, op_class) op,
enum class Op : uint8_t { TENDON_OPS(TENDON_OP) };
#undef TENDON_OP
#define TENDON_OP(op, op_class) Op::op,
constexpr int kOpCount = static_cast<int>(std::initializer_list<Op>{TENDON_OPS(TENDON_OP)}.size());
#undef TENDON_OP
std::string_view name(Op op);

enum class OpClass : uint8_t {
  linear,
  attention,
  norm,
  activation,
  embedding,
  concat,
  elementwise,
  utilities,  // slices, pads, layouts, transfers
};
constexpr int kOpClassCount = static_cast<int>(OpClass::utilities) + 1;
std::string_view name(OpClass op_class);
OpClass class_of(Op op);
bool is_upload(Op op);  // what it makes comes from the host alone

// Parts of the policy.
enum class Module : uint8_t {
  pi0,        // inputs in, actions out
  vlm,        // the prefix through the 2B tower: its keys and values
  siglip,     // image tokens
  suffix,     // state and action tokens, the velocity's projection
  prefix,     // language tokens, the prefix in one piece
  common,     // what depends on time alone, once per step count
  expert,     // the 300M tower of state and actions
  denoise,    // Euler steps
  attention,  // masks
};
constexpr int kModuleCount = static_cast<int>(Module::attention) + 1;
std::string_view name(Module module);
// Throws Error(Fault::usage) naming the nearest module.
Module module_named(std::string_view name);

// One call that a backend made of its device. FLOPs: 2 per multiply-add, products and attention
// only. Bytes as stored, padding included where the backend pads.
struct DeviceCall {
  std::string_view name;  // static text: "linear", "create_qkv_heads"
  OpClass op_class = OpClass::utilities;
  std::string_view dtype = "f32";
  int64_t flops = 0, bytes_read = 0, bytes_written = 0;
  int64_t bytes_up = 0, bytes_down = 0;  // of a transfer; 0: none
  std::optional<Module> module;          // when it serves another one than its op
  double seconds = 0;                    // 0: not known
};

// One op that ran, or that a replay did again.
struct OpEvent {
  Op op = Op::upload;
  Module module = Module::pi0;
  int layer = -1;                                // of the module; -1: none
  bool native = true;                            // false: on the fallback
  bool replayed = false;                         // part of a replay, whose single ops nobody timed
  std::string_view provider;                     // the backend that ran it
  std::string_view dtype;                        // of its products
  int64_t flops = 0;                             // of products and attention; 0 for the rest
  int64_t bytes = 0;                             // activations read and written
  int64_t weight_bytes = 0;                      // read
  int64_t ups = 0, downs = 0;                    // transfers that it is or that the fallback needed
  double seconds = 0;                            // of the host's clock
  std::optional<std::vector<DeviceCall>> calls;  // of a backend that reports them: none to many
};

using OpObserver = std::function<void(const OpEvent&)>;

}  // namespace tendon
