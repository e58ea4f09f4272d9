#include "checkpoint/adapter.h"

#include <algorithm>
#include <array>

#include "tensor/check.h"

namespace tendon {
namespace {

using Role = AdapterKey::Role;

struct Word {
  std::string_view text;
  Role role;
};
constexpr std::array kWords = {
    Word{"lora_A", Role::a},
    Word{"lora_a", Role::a},
    Word{"lora_B", Role::b},
    Word{"lora_b", Role::b},
    Word{"lora_magnitude_vector", Role::magnitude},
    Word{"base_layer", Role::wrapped},
    Word{"original_module", Role::wrapped},
    Word{"modules_to_save", Role::whole},
};

// Without its last part, where that is `leaf`: "default.weight" becomes "default".
std::string_view without(std::string_view rest, std::string_view leaf) {
  if (rest == leaf) return {};
  return ends_with_parts(rest, leaf) ? rest.substr(0, rest.size() - leaf.size() - 1) : rest;
}

// The canonical name of a module's weight or bias.
std::string tensor_of(std::string_view module, std::string_view leaf) {
  return canonical_name(std::string(module) + "." + std::string(leaf));
}

}  // namespace

bool ends_with_parts(std::string_view text, std::string_view end) {
  return text == end || (text.ends_with(end) && text[text.size() - end.size() - 1] == '.');
}

AdapterKey adapter_key(const std::string& name, const std::string& file) {
  constexpr std::string_view kPrefix = "base_model.model.";
  std::string_view key = name;
  if (key.starts_with(kPrefix)) key.remove_prefix(kPrefix.size());
  for (size_t begin = 0; begin < key.size();) {
    const size_t end = std::min(key.find('.', begin), key.size());
    const std::string_view word = key.substr(begin, end - begin);
    const auto found = std::ranges::find(kWords, word, &Word::text);
    if (found != kWords.end() && begin > 0) {
      const std::string_view module = key.substr(0, begin - 1);
      const std::string_view rest = end < key.size() ? key.substr(end + 1) : std::string_view();
      AdapterKey k{.role = found->role, .module = std::string(module)};
      if (k.role == Role::wrapped) {
        k.tensor = tensor_of(module, rest);
      } else if (k.role == Role::whole) {
        const size_t dot = rest.find('.');
        if (dot != std::string_view::npos) k.adapter = rest.substr(0, dot);
        k.tensor = tensor_of(module, dot == std::string_view::npos ? rest : rest.substr(dot + 1));
      } else {
        const bool bias = k.role == Role::b && ends_with_parts(rest, "bias");
        if (bias) k.role = Role::bias;
        k.adapter = without(rest, bias ? "bias" : "weight");
        k.tensor = tensor_of(module, "weight");
      }
      return k;
    }
    // Other methods, and parts of LoRA that are not read: of embeddings, of convolutions.
    ensure(word.find("lora_") == std::string_view::npos &&
               word.find("magnitude_vector") == std::string_view::npos && found == kWords.end(),
           Fault::checkpoint, "{}: {} {}", file, name, kMergeFirst);
    begin = end + 1;
  }
  return {.tensor = canonical_name(key)};
}

void AdapterTensors::add(const AdapterKey& key, const HostTensor& tensor, const std::string& from) {
  if (first.empty()) first = tensor.name, file = from;
  if (!adapter_) adapter_ = key.adapter;
  ensure(*adapter_ == key.adapter || key.role == Role::whole, Fault::checkpoint,
         "{}: {} is of the adapter '{}', others are of '{}'; one adapter is merged", from,
         tensor.name, key.adapter, *adapter_);
  bool fresh = false;
  if (key.role == Role::whole) {
    HostTensor renamed = tensor;
    renamed.name = key.tensor;
    fresh = whole.emplace(key.tensor, std::move(renamed)).second;
  } else {
    Update& u = updates[key.tensor];
    u.module = key.module;
    std::optional<HostTensor>& place = key.role == Role::a      ? u.a
                                       : key.role == Role::b    ? u.b
                                       : key.role == Role::bias ? u.bias
                                                                : u.magnitude;
    fresh = !place;
    place = tensor;
  }
  ensure(fresh, Fault::checkpoint, "{}: {} is stored twice (as {})", from, key.tensor, tensor.name);
}

}  // namespace tendon
