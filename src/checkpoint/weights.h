// Where a model's weights come from, under one set of names: the PyTorch keys of openpi's
// conversion ("action_in_proj.weight", "paligemma_with_expert.paligemma.model...."), without a
// leading "model.".
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "tensor/tensor.h"

namespace tendon {

// What to do about an adapter, whether its tensors lie among the weights or in a file beside them.
inline constexpr std::string_view kMergeFirst =
    "belongs to a LoRA or another adapter of PEFT, without which the base model would run in place "
    "of the fine-tuned one; merge it into the weights first (PEFT's merge_and_unload(), then "
    "save_pretrained)";

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(std::string_view name) const = 0;
  virtual std::optional<Shape> shape_of(std::string_view name) const = 0;
  // Throws Error(Fault::checkpoint): a missing tensor names the nearest existing one, a wrong shape
  // or a type other than F32, BF16 or F16 says what was found and expected.
  virtual void check(const std::string& name, const Shape& shape) const = 0;
  // The tensor, after the same checks. One of a file whose values are not finite or larger than
  // kWeightMagnitudeMax is refused too.
  virtual HostTensor get(const std::string& name, const Shape& shape) = 0;
  // The pieces of a weight that a backend has packed, as stored by `tendon convert`; else empty.
  virtual std::vector<HostTensor> packed(const std::string&) const { return {}; }
  // Every tensor under its canonical name; empty for generated sources.
  virtual std::vector<HostTensor> tensors() const = 0;
  virtual std::string description() const = 0;
};

// The canonical name of a key of any known layout: leading "model." removed, names from before
// transformers 4.52 and flattened vision towers mapped.
std::string canonical_name(std::string_view key);

// Tensors of one or several files. The token table is `embed_tokens`; where only `lm_head` is
// stored, it is served under that name. Throws Error(Fault::checkpoint) when two keys mean the same
// tensor, when the buffers of lerobot's first pi0 release are found (its preprocessing was
// another), or the tensors of an adapter.
std::unique_ptr<WeightSource> open_weights(
    std::vector<std::shared_ptr<const SafetensorsFile>> files);

}  // namespace tendon
