#include "ops/audit.h"

#include <array>

#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

constexpr std::array<std::string_view, kModuleCount> kModules = {
    "pi0", "vlm", "siglip", "suffix", "prefix", "common", "expert", "denoise", "attention"};

double share(int64_t device, int64_t host) {
  const int64_t all = device + host;
  return all == 0 ? 1.0 : static_cast<double>(device) / static_cast<double>(all);
}

template <class Belongs>
AuditSum sum(const std::vector<AuditEntry>& entries, const Belongs& belongs) {
  AuditSum s;
  for (const AuditEntry& entry : entries)
    if (belongs(entry)) s.add(entry);
  return s;
}

}  // namespace

std::string_view name(OpClass op_class) {
  constexpr std::string_view kNames[] = {"linear",    "attention", "norm",        "activation",
                                         "embedding", "concat",    "elementwise", "utilities"};
  static_assert(std::size(kNames) == kOpClassCount);
  return kNames[static_cast<size_t>(op_class)];
}

std::string_view name(Module module) { return kModules[static_cast<size_t>(module)]; }

Module module_named(std::string_view name) {
  for (size_t i = 0; i < kModules.size(); ++i)
    if (kModules[i] == name) return static_cast<Module>(i);
  fail(Fault::usage, "unknown module '{}'; nearest: '{}'", name,
       nearest(name, std::vector<std::string>(kModules.begin(), kModules.end())));
}

double AuditSum::device_share() const { return share(device_calls, host_calls); }
double AuditSum::device_flops_share() const { return share(device_flops, host_flops); }

void AuditSum::add(const AuditEntry& entry) {
  const DeviceCall& c = entry.call;
  ++(entry.device ? device_calls : host_calls);
  (entry.device ? device_flops : host_flops) += c.flops;
  bytes += c.bytes_read + c.bytes_written;
  ups += entry.ups, downs += entry.downs;
  bytes_up += c.bytes_up, bytes_down += c.bytes_down;
}

AuditSum Audit::total() const {
  return sum(entries, [](const AuditEntry&) { return true; });
}

AuditSum Audit::of(OpClass op_class) const {
  return sum(entries, [&](const AuditEntry& e) { return e.call.op_class == op_class; });
}

AuditSum Audit::of(Module module) const {
  return sum(entries, [&](const AuditEntry& e) { return e.module == module; });
}

int64_t Audit::transfers_between_steps() const {
  int64_t transfers = 0, since_last_step = 0;
  bool stepping = false;
  for (const AuditEntry& e : entries) {
    if (stepping) since_last_step += e.ups + e.downs;
    if (e.module != Module::denoise) continue;
    stepping = true;
    transfers += since_last_step;
    since_last_step = 0;
  }
  return transfers;
}

}  // namespace tendon
