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
#define TENDON_OP(op, op_class) #op,
  constexpr std::string_view kNames[] = {TENDON_OPS(TENDON_OP)};
#undef TENDON_OP
  return kNames[static_cast<size_t>(op)];
}

std::string_view name(OpClass op_class) {
  constexpr std::string_view kNames[] = {"linear",    "attention", "norm",        "activation",
                                         "embedding", "concat",    "elementwise", "utilities"};
  static_assert(std::size(kNames) == kOpClassCount);
  return kNames[static_cast<size_t>(op_class)];
}

OpClass class_of(Op op) {
#define TENDON_OP(op, op_class) OpClass::op_class,
  constexpr OpClass kClasses[] = {TENDON_OPS(TENDON_OP)};
#undef TENDON_OP
  return kClasses[static_cast<size_t>(op)];
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
