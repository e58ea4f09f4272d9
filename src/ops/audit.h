// Sums of events: counters per op, which every Ops keeps, and the audit of a call by class of op
// and by module of the policy.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/event.h"

namespace tendon {

// What one kind of op cost so far.
struct OpCount {
  int64_t native_calls = 0, fallback_calls = 0;
  int64_t flops = 0, bytes = 0, weight_bytes = 0;
  double seconds = 0;
};

struct Coverage {
  std::array<OpCount, kOpCount> ops{};
  OpCount total;

  const OpCount& of(Op op) const { return ops[static_cast<size_t>(op)]; }
  void add(const OpEvent& event);
};

struct AuditEntry {
  DeviceCall call;
  Module module = Module::pi0;
  int layer = -1;      // of the module; -1: none
  bool device = true;  // false: the fallback, on the host
  bool replayed = false;
  std::string_view provider;   // the backend that ran it
  int64_t ups = 0, downs = 0;  // transfers that the call is or caused
};

struct AuditSum {
  int64_t device_calls = 0, host_calls = 0;
  int64_t device_flops = 0, host_flops = 0;
  int64_t bytes = 0;  // read and written
  int64_t ups = 0, downs = 0, bytes_up = 0, bytes_down = 0;
  double seconds = 0;

  int64_t calls() const { return device_calls + host_calls; }
  int64_t flops() const { return device_flops + host_flops; }
  std::optional<double> device_share() const;        // of calls; none without any
  std::optional<double> device_flops_share() const;  // likewise
  void add(const AuditEntry& entry);
};

struct Audit {
  std::vector<AuditEntry> entries;

  // One entry per call of the device, or one for the op.
  void add(const OpEvent& event);
  AuditSum total() const;
  AuditSum of(OpClass op_class) const;
  AuditSum of(Module module) const;
  // By "siglip.layer.3", in the order in which they first ran.
  std::vector<std::pair<std::string, AuditSum>> layers() const;
  bool replayed() const;  // a part of it
  // Transfers between the end of the first Euler step and the end of the last one.
  int64_t transfers_between_steps() const;
};

}  // namespace tendon
