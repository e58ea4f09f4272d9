// What lerobot 0.4 did in another way than later releases, of which its files say nothing: the
// state was padded in the prompt of pi0.5, the bars around pictures that are not square were -3,
// and up to 0.4.2 the times of the Euler steps were added up.
#pragma once

#include <optional>
#include <string>

#include "policy/open_model.h"
#include "policy/processors.h"

namespace tendon {

// Whether a checkpoint is of 0.4, as far as that can be seen. The processors of 0.5.1 and later
// have a step more, config.json of 0.4.0 and 0.4.1 has no rtc_config; between them, 0.4 stored the
// tied token table once, 0.5.0 stores it twice.
std::optional<bool> of_lerobot_0_4(const nlohmann::json& config, const Processors& processors,
                                   const WeightSource& weights);

// Does it as 0.4 did, with a note. config.json of 0.4.3 and later has use_peft. `file`: its name,
// for messages.
void follow_lerobot_0_4(const std::string& file, const nlohmann::json& config,
                        const OpenOptions& options, OpenedModel& model);

// Where it cannot be seen: warnings that name the option for each, unless it was said.
// `square`: pictures were, in training.
void warn_of_lerobot_0_4(const std::string& file, bool square, const OpenOptions& options,
                         OpenedModel& model);

}  // namespace tendon
