// What ran where: one call of the policy, every executed call of the device counted.
#pragma once

#include <string>

#include "ops/audit.h"
#include "tendon/opened.h"

namespace tendon {

// Audits one call after `warm_up` others: the steady state of a robot, in which schedules, tables
// and masks are there already. `actions`, if given, takes what the audited call computed.
Audit audit_call(OpenedEngine& engine, const Observation& observation, const InferOptions& options,
                 int64_t warm_up, Actions* actions = nullptr);

// One line per module, op and place ("gemma linear device 1440"), sorted: what a build is expected
// to run, so that gaining or losing a kernel is a difference of one line.
std::string expectation(const Audit& audit);

// The lines that only one of them has, with - (expected) or + (found); empty when they agree.
std::string difference(const std::string& expected, const std::string& found);

}  // namespace tendon
