// What ran where: one entry per executed call, by class of op and by module of the policy.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tendon {

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
};

struct AuditEntry {
  DeviceCall call;
  Module module = Module::pi0;
  bool device = true;          // false: the fallback, on the host
  std::string_view provider;   // the backend that ran it
  int64_t ups = 0, downs = 0;  // transfers that the call is or caused
};

struct AuditSum {
  int64_t device_calls = 0, host_calls = 0;
  int64_t device_flops = 0, host_flops = 0;
  int64_t bytes = 0;  // read and written
  int64_t ups = 0, downs = 0, bytes_up = 0, bytes_down = 0;

  int64_t calls() const { return device_calls + host_calls; }
  double device_share() const;        // of calls; 1 without any
  double device_flops_share() const;  // likewise
  void add(const AuditEntry& entry);
};

struct Audit {
  std::vector<AuditEntry> entries;

  AuditSum total() const;
  AuditSum of(OpClass op_class) const;
  AuditSum of(Module module) const;
  // Transfers between the end of the first Euler step and the end of the last one.
  int64_t transfers_between_steps() const;
};

}  // namespace tendon
