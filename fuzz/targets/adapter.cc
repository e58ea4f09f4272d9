// A LoRA adapter of a few small weights: adapter_config.json, ended by a zero byte, and the
// adapter's safetensors file.
#include "checkpoint/adapter.h"

#include "../target.h"

using namespace tendon;

namespace {

// The base: weights of a layer under their real names.
std::shared_ptr<const SafetensorsFile> base() {
  static const std::shared_ptr<const SafetensorsFile> opened = [] {
    const std::string layer = "paligemma_with_expert.gemma_expert.model.layers.0.self_attn.";
    const auto filled = [](const std::string& name, const Shape& shape) {
      return host_tensor(name, shape, std::vector<float>(static_cast<size_t>(shape.count()), 0.5f));
    };
    const std::filesystem::path path =
        std::filesystem::temp_directory_path() / ("tendon_fuzz_base_" + std::to_string(::getpid()));
    write_safetensors(
        path, std::vector{filled(layer + "q_proj.weight", {8, 6}),
                          filled(layer + "o_proj.weight", {6, 8}),
                          filled("state_proj.weight", {6, 3}), filled("state_proj.bias", {6}),
                          filled("patch_embedding.weight", {4, 3, 2, 2})});
    auto mapped = SafetensorsFile::open(path);
    std::filesystem::remove(path);
    return mapped;
  }();
  return opened;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryFile settings;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.find('\0'), size);
  settings.fill(all.substr(0, end));
  const size_t begin = std::min(end + 1, size);
  const auto bytes = fuzz::copy_of(data + begin, size - begin);
  fuzz::taken({Fault::checkpoint}, [&] {
    const LoraSettings told = read_adapter_config(settings.path());
    const auto file = SafetensorsFile::from_bytes(bytes, *bytes, "adapter_model.safetensors");
    const auto weights = open_weights({base()}, {.files = {file}, .settings = told});
    for (const auto& [name, tensor] : weights->tensors()) {
      const HostTensor t = weights->get(name, tensor.shape);
      for (int64_t i = 0; i < t.shape.count(); ++i) fuzz::require(element(t, i) <= 1e4f);
    }
    if (weights->adapter()) fuzz::require(!weights->adapter()->text().empty());
  });
  return 0;
}
