// Recorded episodes as examples to compare a policy with.
#pragma once

#include <string>
#include <vector>

#include "serve/model_card.h"
#include "validate/flow_loss.h"

namespace tendon::cli {

// At most `count` requests of the recordings in `folder`, the same ones every time, each with its
// chunk (a batch has as many requests as rows): what it holds under "actions", as datasets do, else
// what it was answered. Throws Error(Fault::input) for no recording or no such request, and, naming
// file and request, for what does not fit the policy.
std::vector<Example> recorded_examples(const std::string& folder, const ModelCard& card,
                                       size_t count);

}  // namespace tendon::cli
