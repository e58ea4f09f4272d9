#include "ops/audit.h"

#include <fmt/format.h>

#include <algorithm>

namespace tendon {

void Coverage::add(const OpEvent& e) {
  for (OpCount* c : {&ops[static_cast<size_t>(e.op)], &total}) {
    ++(e.native ? c->native_calls : c->fallback_calls);
    c->flops += e.flops, c->bytes += e.bytes, c->weight_bytes += e.weight_bytes;
    c->seconds += e.seconds;
  }
}

namespace {

std::optional<double> share(int64_t device, int64_t all) {
  if (all == 0) return {};
  return static_cast<double>(device) / static_cast<double>(all);
}

template <class Belongs>
AuditSum sum(const std::vector<AuditEntry>& entries, const Belongs& belongs) {
  AuditSum s;
  for (const AuditEntry& entry : entries)
    if (belongs(entry)) s.add(entry);
  return s;
}

// The one call of a backend that makes one per op. Of a fallback's transfers, half of the bytes go
// each way.
DeviceCall call_of(const OpEvent& e) {
  const int64_t half = e.bytes / 2;
  const bool moved = !e.native && e.ups + e.downs > 0;
  return {.name = name(e.op),
          .op_class = class_of(e.op),
          .dtype = e.flops > 0 ? e.dtype : "f32",
          .flops = e.flops,
          .bytes_read = e.bytes - half + e.weight_bytes,
          .bytes_written = half,
          .bytes_up = moved             ? half
                      : is_upload(e.op) ? e.bytes
                                        : 0,
          .bytes_down = moved                  ? half
                        : e.op == Op::download ? e.bytes
                                               : 0,
          .seconds = e.seconds};
}

}  // namespace

std::optional<double> AuditSum::device_share() const { return share(device_calls, calls()); }
std::optional<double> AuditSum::device_flops_share() const { return share(device_flops, flops()); }

void AuditSum::add(const AuditEntry& entry) {
  const DeviceCall& c = entry.call;
  ++(entry.device ? device_calls : host_calls);
  (entry.device ? device_flops : host_flops) += c.flops;
  bytes += c.bytes_read + c.bytes_written;
  ups += entry.ups, downs += entry.downs;
  bytes_up += c.bytes_up, bytes_down += c.bytes_down;
  seconds += c.seconds;
}

void Audit::add(const OpEvent& e) {
  const auto entry = [&](const DeviceCall& call, int64_t ups, int64_t downs) {
    entries.push_back({call, call.module.value_or(e.module), e.layer, e.native, e.replayed,
                       e.provider, ups, downs});
  };
  if (!e.calls) return entry(call_of(e), e.ups, e.downs);
  for (const DeviceCall& c : *e.calls) entry(c, c.bytes_up > 0 ? 1 : 0, c.bytes_down > 0 ? 1 : 0);
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

std::vector<std::pair<std::string, AuditSum>> Audit::layers() const {
  std::vector<std::pair<std::string, AuditSum>> sums;
  for (const AuditEntry& e : entries) {
    if (e.layer < 0) continue;
    const std::string name = fmt::format("{}.layer.{}", tendon::name(e.module), e.layer);
    auto sum = std::ranges::find(sums, name, &std::pair<std::string, AuditSum>::first);
    if (sum == sums.end()) sum = sums.insert(sums.end(), {name, {}});
    sum->second.add(e);
  }
  return sums;
}

bool Audit::replayed() const { return std::ranges::any_of(entries, &AuditEntry::replayed); }

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
