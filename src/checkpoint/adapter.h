// LoRA adapters: low-rank updates of weights, merged where a weight is read. The tensors' names are
// PEFT's ("base_model.model.….q_proj.lora_A.weight") or, in openpi's layout, "….q_proj.lora_a".
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/weights.h"

namespace tendon {

// What the tensors of an adapter do not tell: PEFT's adapter_config.json, or a user.
struct LoraSettings {
  std::string file;             // adapter_config.json; empty: there is none
  std::optional<double> scale;  // of every update, whatever the rest says; 0: nothing is applied
  double alpha = 8;             // PEFT's defaults
  int64_t rank = 8;
  bool rank_stabilised = false;  // scale is alpha / sqrt(rank), else alpha / rank
  bool dora = false;             // rows have a trained length
  bool bias = false;             // B has a bias
  // By the end of a module's name.
  std::vector<std::pair<std::string, double>> alphas;
  std::vector<std::pair<std::string, int64_t>> ranks;
  std::vector<std::string> whole;  // modules that were trained in full
  std::string base;                // the model that it was trained on; may be empty

  bool known() const { return scale || !file.empty(); }
};

// Throws Error(Fault::checkpoint) naming file and key for what is not LoRA, changes numbers and is
// not known here, or changes the base weights before training begins (PiSSA, OLoRA, ...).
LoraSettings read_adapter_config(const std::filesystem::path& path);

struct AdapterFiles {
  std::vector<std::shared_ptr<const SafetensorsFile>> files;  // empty: it lies among the weights
  LoraSettings settings = {};
  std::string left_out = {};  // a file of an adapter that was not even opened, since scale is 0
};

// What a key means for an adapter. `tensor` is the canonical name of the weight or bias concerned.
struct AdapterKey {
  // wrapped: of the base, inside a module that an adapter changes. whole: trained in full.
  enum class Role { plain, wrapped, whole, a, b, bias, magnitude };
  Role role = Role::plain;
  std::string tensor;
  std::string module;   // as the adapter's patterns see it
  std::string adapter;  // "default"; often empty
};
// Throws Error(Fault::checkpoint), beginning with `file`, for names of methods that are not known.
AdapterKey adapter_key(const std::string& name, const std::string& file);

// Whether the last parts of a name with dots are those of `end`.
bool ends_with_parts(std::string_view text, std::string_view end);

// The tensors of an adapter, by the weight that they change.
class AdapterTensors {
 public:
  struct Update {
    std::string module;
    std::optional<HostTensor> a, b, bias, magnitude;
  };
  // Throws Error(Fault::checkpoint) for a second one of the same meaning, or of another adapter.
  void add(const AdapterKey& key, const HostTensor& tensor, const std::string& file);
  bool empty() const { return updates.empty() && whole.empty(); }

  std::map<std::string, Update> updates;
  NamedTensors whole;                // they take the place of the base's
  std::vector<std::string> wrapped;  // what the base has of modules that the adapter changes
  std::string first;                 // the name of one of them, for messages
  std::string file;                  // of that one

 private:
  std::optional<std::string> adapter_;
};

// `base` with the adapter merged, in float32: W + scale B A; rows of DoRA scaled to their trained
// length; openpi's factors per head. Throws Error(Fault::checkpoint) that names the tensor for
// shapes that do not fit the base, lacking halves and contradictions to the settings; values that
// are not finite are refused by get().
std::unique_ptr<WeightSource> merge_adapter(std::unique_ptr<WeightSource> base,
                                            AdapterTensors adapter, const LoraSettings& settings);

}  // namespace tendon
