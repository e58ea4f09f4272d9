// What stands behind an Engine: a policy, its backends and the ops between them. For the rooms that
// look inside: validation, audit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/weights.h"
#include "policy/open_model.h"
#include "policy/policy.h"
#include "tendon/backends.h"
#include "tendon/tendon.h"

namespace tendon {

struct OpenedEngine {
  OpenOptions options;  // resolved
  std::unique_ptr<Kernels> kernels, fallback;
  Ops ops;
  std::vector<std::string> notes;
  std::unique_ptr<Policy> policy;
  double load_ms = 0;

  explicit OpenedEngine(const OpenOptions& resolved_options, std::unique_ptr<Kernels> kernels = {});
  static OpenedEngine& of(Engine& engine) { return *engine.parts_; }
  static Engine front(std::unique_ptr<OpenedEngine> parts) { return Engine(std::move(parts)); }
};

// As Engine::open; on `kernels`, when given, whatever the options' backend is. What open_model()
// has opened may be loaded several times, with other options of the engine (backend, precision,
// ...).
std::unique_ptr<OpenedEngine> open_engine(const OpenedModel& opened, const OpenOptions& options,
                                          std::unique_ptr<Kernels> kernels = {});
std::unique_ptr<OpenedEngine> open_engine(const std::string& model, const OpenOptions& options,
                                          std::unique_ptr<Kernels> kernels = {});

}  // namespace tendon
