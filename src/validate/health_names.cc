// Names, shapes and types of the weights.
#include "model/parameters.h"
#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {

Names check_names(const WeightSource& source, int64_t stated_state_dim) {
  Names names;
  Report r;
  const auto on_problem = [&](const Problem& p) { r.error(p.check, p.subject, p.text); };
  r.attempt("tensor.tower", source.description(), [&] {
    Config sizes = config_from_weights(source, /*heads_known=*/true, on_problem);
    // The state is as wide as the actions, unless two sources deny it.
    if (sizes.state_dim != stated_state_dim) sizes.state_dim = sizes.action_dim;
    for (const std::string& name : check_parameters(source, sizes, on_problem)) {
      if (std::ranges::find(r.findings, name, &Finding::subject) != r.findings.end()) continue;
      r.add(alters_a_module(name, sizes) ? Finding::Level::error : Finding::Level::warning,
            "tensor.unused", name,
            fmt::format("{}: {} belongs to no parameter of {} and is not read; does it come from "
                        "another model or a newer release?",
                        source.description(), name, tendon::name(sizes.policy)));
    }
    names.sizes = sizes;
  });
  names.findings = std::move(r.findings);
  return names;
}

}  // namespace tendon
