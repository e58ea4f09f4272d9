#include "checkpoint/weights.h"

#include "checkpoint/adapter.h"
#include "checkpoint/values.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

// `from` at the beginning of `name` becomes `to`.
bool replace_prefix(std::string& name, const std::string& from, const std::string& to) {
  if (!name.starts_with(from)) return false;
  name = to + name.substr(from.size());
  return true;
}

class FileWeights final : public WeightSource {
 public:
  // What belongs to an adapter goes to `adapter`.
  FileWeights(const std::vector<std::shared_ptr<const SafetensorsFile>>& files,
              AdapterTensors& adapter) {
    for (const auto& file : files) {
      for (const HostTensor& t : file->tensors()) {
        const AdapterKey key = adapter_key(t.name, file->name());
        const bool wrapped = key.role == AdapterKey::Role::wrapped;
        if (wrapped) adapter.wrapped.push_back(key.tensor);
        if (wrapped || key.role == AdapterKey::Role::plain)
          add(t, key.tensor, file->name());
        else
          adapter.add(key, t, file->name());
      }
      description_ += (description_.empty() ? "" : ", ") + file->name();
    }
    const auto head = tensors_.find(kPaliGemma + "lm_head.weight");
    if (head == tensors_.end() || tensors_.contains(kTokenTable)) return;
    HostTensor table = head->second;
    table.name = kTokenTable;
    tensors_.emplace(kTokenTable, std::move(table));
  }

  HostTensor get(const std::string& name, const Shape& shape) override {
    if (const auto problem = find_fault(*this, name, shape)) refuse(*problem);
    const HostTensor& t = tensors_.at(name);
    check_values(t, description_);
    if (name == kTokenTable) forget_pages(t);  // its rows are read when a prompt needs them
    return t;
  }

  std::vector<HostTensor> packed(const std::string& name) const override {
    const std::string prefix = "packed." + name + "/";
    std::vector<HostTensor> pieces;
    for (auto t = tensors_.lower_bound(prefix); t != tensors_.end() && t->first.starts_with(prefix);
         ++t) {
      pieces.push_back(t->second);
      pieces.back().name = t->first.substr(prefix.size());
    }
    return pieces;
  }

  // The file of an adapter that is not applied; empty: there is none.
  void leave_out(const std::string& file) {
    if (!file.empty()) summary_ = AdapterSummary{.file = file, .left_out = true};
  }

 private:
  void add(const HostTensor& t, const std::string& name, const std::string& file) {
    ensure(!name.starts_with("normalize_") && !name.starts_with("unnormalize_"), Fault::checkpoint,
           "{} holds {}: a checkpoint of lerobot's first pi0 release, whose preprocessing was "
           "another; migrate it with lerobot.processor.migrate_policy_normalization first",
           file, t.name);
    HostTensor renamed = t;
    renamed.name = name;
    ensure(tensors_.emplace(name, std::move(renamed)).second, Fault::checkpoint,
           "{}: {} is stored twice (as {})", file, name, t.name);
  }
};

}  // namespace

std::string canonical_name(std::string_view key) {
  std::string name(key);
  replace_prefix(name, "model.", "");
  const std::string& base = kPaliGemma;
  if (!replace_prefix(name, base + "language_model.model.", base + "model.language_model."))
    replace_prefix(name, base + "language_model.lm_head.", base + "lm_head.");
  replace_prefix(name, base + "vision_tower.", base + "model.vision_tower.");
  replace_prefix(name, base + "multi_modal_projector.", base + "model.multi_modal_projector.");
  const std::string tower = base + "model.vision_tower.";
  if (!name.starts_with(tower + "vision_model."))
    replace_prefix(name, tower, tower + "vision_model.");
  return name;
}

std::optional<Problem> find_fault(const WeightSource& source, const std::string& name,
                                  const Shape& shape) {
  const NamedTensors& tensors = source.tensors();
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    std::vector<std::string> names;
    for (const auto& [known, tensor] : tensors) names.push_back(known);
    return Problem{"tensor.missing", name,
                   fmt::format("{} has no tensor {}; nearest: {}", source.description(), name,
                               nearest(name, names))};
  }
  const HostTensor& t = found->second;
  if (t.shape != shape)
    return Problem{"tensor.shape", name,
                   fmt::format("{}: {} is {}, expected {}", source.description(), name,
                               to_string(t.shape), to_string(shape))};
  if (t.dtype != DType::f32 && t.dtype != DType::bf16 && t.dtype != DType::f16)
    return Problem{"tensor.dtype", name,
                   fmt::format("{}: {} has type {}, expected F32, BF16 or F16",
                               source.description(), name, tendon::name(t.dtype))};
  return {};
}

bool is_unread(std::string_view name) {
  return name == kPaliGemma + "lm_head.weight" ||
         name == "paligemma_with_expert.gemma_expert.lm_head.weight";
}

std::string AdapterSummary::text() const {
  if (left_out)
    return fmt::format("the adapter of {} is not applied, since the scale that was given is 0",
                       file);
  const auto range = [](const auto& both) {
    return both.first == both.second
               ? fmt::format("{:.6g}", double(both.first))
               : fmt::format("{:.6g} to {:.6g}", double(both.first), double(both.second));
  };
  std::string all = fmt::format("the adapter of {} is merged: ", file);
  if (updated > 0)
    all += fmt::format("{} of rank {} and scale {} in {} weights", dora ? "DoRA" : "LoRA",
                       range(ranks), range(scales), updated);
  if (replaced > 0)
    all += fmt::format("{}{} tensors that were trained in full", updated > 0 ? ", " : "", replaced);
  return all;
}

std::unique_ptr<WeightSource> open_weights(
    const std::vector<std::shared_ptr<const SafetensorsFile>>& files) {
  return open_weights(files, AdapterFiles{});
}

std::unique_ptr<WeightSource> open_weights(
    const std::vector<std::shared_ptr<const SafetensorsFile>>& files, const AdapterFiles& adapter) {
  AdapterTensors tensors;
  auto base = std::make_unique<FileWeights>(files, tensors);
  for (const auto& file : adapter.files)
    for (const HostTensor& t : file->tensors()) {
      AdapterKey key = adapter_key(t.name, file->name());
      if (key.role == AdapterKey::Role::plain || key.role == AdapterKey::Role::wrapped)
        key.role = AdapterKey::Role::whole;
      tensors.add(key, t, file->name());
    }
  if (adapter.settings.scale == 0.) {
    base->leave_out(tensors.empty() ? adapter.left_out : tensors.file);
    return base;
  }
  for (const std::string& name : tensors.wrapped)
    ensure(tensors.updates.contains(name.substr(0, name.rfind('.')) + ".weight") ||
               tensors.whole.contains(name),
           Fault::checkpoint, "{}: {} {}", base->description(), name, kMergeFirst);
  if (tensors.empty()) return base;
  ensure(adapter.settings.known(), Fault::checkpoint, "{}: {} {}{}", tensors.file, tensors.first,
         kMergeFirst, kOrSayScale);
  return merge_adapter(std::move(base), std::move(tensors), adapter.settings);
}

}  // namespace tendon
