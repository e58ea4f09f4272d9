// Where a model's weights come from, under one set of names: the PyTorch keys of openpi's
// conversion ("action_in_proj.weight", "paligemma_with_expert.paligemma.model...."), without a
// leading "model.".
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "tendon/error.h"
#include "tensor/tensor.h"

namespace tendon {

// Something wrong in a checkpoint. Readers tell of each one and go on: where a model is opened the
// first is thrown (`refuse`), `tendon validate` collects them all.
struct Problem {
  std::string check;    // "tensor.missing", "tensor.shape", ...
  std::string subject;  // the tensor, file or key
  std::string text;     // one sentence: what, where, got, expected, what to do
};
using OnProblem = std::function<void(const Problem&)>;

[[noreturn]] inline void refuse(const Problem& problem) {
  throw Error(Fault::checkpoint, problem.text);
}

inline const std::string kPaliGemma = "paligemma_with_expert.paligemma.";
inline const std::string kTokenTable = kPaliGemma + "model.language_model.embed_tokens.weight";

// What to do about an adapter that cannot be merged here.
inline constexpr std::string_view kMergeFirst =
    "belongs to a LoRA or another adapter of PEFT, without which the base model would run in place "
    "of the fine-tuned one; merge it into the weights first (PEFT's merge_and_unload(), then "
    "save_pretrained)";
// Where only a number is missing.
inline constexpr std::string_view kOrSayScale =
    "; or say --lora-scale X: alpha / rank of its training (alpha / sqrt(rank) of rsLoRA), which "
    "is 1 in openpi's configs";

using NamedTensors = std::map<std::string, HostTensor, std::less<>>;

// What was merged into weights, or is there and was not.
struct AdapterSummary {
  std::string file;
  bool left_out = false;             // somebody wants the weights as they are: a scale of 0
  std::vector<std::string> weights;  // each tensor that is another one than the base's
  int64_t updated = 0, replaced = 0;
  std::pair<int64_t, int64_t> ranks = {};  // smallest and largest
  std::pair<double, double> scales = {};
  bool dora = false;
  // How much of what changes rounding to bf16 leaves: 1 is all.
  double kept_in_bf16 = 1;

  std::string text() const;  // one sentence
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The tensor. One of a file is checked first, as by find_fault; values that are not finite or
  // larger than kWeightMagnitudeMax are refused too. Throws Error(Fault::checkpoint).
  virtual HostTensor get(const std::string& name, const Shape& shape) = 0;
  // The pieces of a weight that a backend has packed, as stored by `tendon convert`; else empty.
  virtual std::vector<HostTensor> packed(const std::string&) const { return {}; }
  // Every tensor of files by its canonical name; generated sources have none.
  const NamedTensors& tensors() const { return tensors_; }
  const std::string& description() const { return description_; }
  // The adapter that get() merges or leaves out; null: there is none.
  const AdapterSummary* adapter() const { return summary_ ? &*summary_ : nullptr; }

 protected:
  NamedTensors tensors_;
  std::string description_;
  std::optional<AdapterSummary> summary_;
};

// What is wrong with the tensor `name` of `source`: it is missing (the nearest existing one is
// named), it has another shape, or a type other than F32, BF16 or F16.
std::optional<Problem> find_fault(const WeightSource& source, const std::string& name,
                                  const Shape& shape);

// The canonical name of a key of any known layout: leading "model." removed, names from before
// transformers 4.52 and flattened vision towers mapped.
std::string canonical_name(std::string_view key);

// Tensors that training frameworks store and no engine reads: the heads of the two language models.
bool is_unread(std::string_view name);

struct AdapterFiles;

// Tensors of one or several files, with the adapter that lies among them or in files of its own
// merged, or left out where its scale is 0. The token table is `embed_tokens`; where only `lm_head`
// is stored, it is served under that name. Throws Error(Fault::checkpoint) when two keys mean the
// same tensor, when the buffers of lerobot's first pi0 release are found (its preprocessing was
// another), or an adapter cannot be merged: see merge_adapter(); nobody tells its scale.
std::unique_ptr<WeightSource> open_weights(
    const std::vector<std::shared_ptr<const SafetensorsFile>>& files);
std::unique_ptr<WeightSource> open_weights(
    const std::vector<std::shared_ptr<const SafetensorsFile>>& files, const AdapterFiles& adapter);

}  // namespace tendon
