// What `tendon convert` writes: one .safetensors with packed weights, every other tensor that the
// model needs, the tokenizer's file, and in its metadata configuration, policy spec, precision and
// provenance.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/safetensors.h"
#include "model/weights.h"
#include "policy/open_model.h"

namespace tendon {

struct Conversion {
  std::string source;     // what was converted, as the user named it
  std::string precision;  // of the packed weights
  std::string version;    // of tendon
};

// Loads `model` on `ops`, whose backend packs the weights, writes them and returns them. Throws
// Error(Fault::checkpoint) when the file cannot be written; nothing half-written remains.
Weights write_converted(const std::filesystem::path& out, OpenedModel& model, Ops& ops,
                        const Conversion& conversion);

// Checks format, version and content hash: Error(Fault::checkpoint) for a file that is newer, cut
// or altered. Sets OpenedModel::precision.
OpenedModel open_converted(const std::filesystem::path& path, const OpenOptions& options);
// What follows those checks: its content is as hostile as before, a hash proves no intent.
OpenedModel read_converted(const std::shared_ptr<const SafetensorsFile>& file);

}  // namespace tendon
