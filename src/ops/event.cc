#include "ops/event.h"

#include <array>
#include <string>

#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

constexpr std::array<std::string_view, kModuleCount> kModules = {
    "pi0", "vlm", "siglip", "suffix", "prefix", "common", "expert", "denoise", "attention"};

}  // namespace

std::string_view name(Op op) {
  constexpr std::string_view kNames[] = {
      "upload",      "download",   "prepare",    "linear",  "gated_linear", "layer_norm",
      "rms_norm",    "qkv",        "attention",  "embed",   "add_scaled",   "multiply",
      "concat_rows", "slice_rows", "write_rows", "patches", "embed_times"};
  static_assert(std::size(kNames) == kOpCount);
  return kNames[static_cast<size_t>(op)];
}

std::string_view name(OpClass op_class) {
  constexpr std::string_view kNames[] = {"linear",    "attention", "norm",        "activation",
                                         "embedding", "concat",    "elementwise", "utilities"};
  static_assert(std::size(kNames) == kOpClassCount);
  return kNames[static_cast<size_t>(op_class)];
}

OpClass class_of(Op op) {
  switch (op) {
    case Op::linear:
    case Op::gated_linear:
    case Op::qkv: return OpClass::linear;
    case Op::attention: return OpClass::attention;
    case Op::layer_norm:
    case Op::rms_norm: return OpClass::norm;
    case Op::embed:
    case Op::embed_times: return OpClass::embedding;
    case Op::concat_rows: return OpClass::concat;
    case Op::add_scaled:
    case Op::multiply: return OpClass::elementwise;
    default: return OpClass::utilities;
  }
}

bool is_upload(Op op) { return op == Op::upload || op == Op::patches || op == Op::embed_times; }

std::string_view name(Module module) { return kModules[static_cast<size_t>(module)]; }

Module module_named(std::string_view name) {
  for (size_t i = 0; i < kModules.size(); ++i)
    if (kModules[i] == name) return static_cast<Module>(i);
  fail(Fault::usage, "unknown module '{}'; nearest: '{}'", name,
       nearest(name, std::vector<std::string>(kModules.begin(), kModules.end())));
}

}  // namespace tendon
