#include "checkpoint/files.h"

#include <algorithm>
#include <fstream>
#include <string_view>
#include <system_error>
#include <vector>

#include "tensor/check.h"
#include "tensor/embed.h"

// The two demo policies, as lerobot's save_pretrained left them.
#define POLICY_FILES(X, policy, step)                                                         \
  X(policy, config, "config.json")                                                            \
  X(policy, sizes, "tendon.json")                                                             \
  X(policy, weights, "model.safetensors")                                                     \
  X(policy, before, "policy_preprocessor.json")                                               \
  X(policy, normalizer, "policy_preprocessor_step_" step "_normalizer_processor.safetensors") \
  X(policy, after, "policy_postprocessor.json")                                               \
  X(policy, unnormalizer, "policy_postprocessor_step_0_unnormalizer_processor.safetensors")   \
  X(policy, tokenizer, "tokenizer/tokenizer.model")
#define DEMO_FILES(X) POLICY_FILES(X, pi0, "6") POLICY_FILES(X, pi05, "3")

#define EMBED(policy, symbol, file) \
  TENDON_EMBED(std::byte, tendon_##policy##_##symbol, TENDON_ASSETS "/demo/" #policy "/" file);
DEMO_FILES(EMBED)

namespace tendon {
namespace {

constexpr std::string_view kInside = "embedded:";

struct Embedded {
  std::string_view path;
  const std::byte *begin, *end;
};

#define ROW(policy, symbol, file) \
  Embedded{#policy "/" file, tendon_##policy##_##symbol, tendon_##policy##_##symbol##_end},
const std::vector<Embedded> kFiles = {DEMO_FILES(ROW)};

}  // namespace

std::optional<std::span<const std::byte>> embedded_file(const std::filesystem::path& path) {
  const std::string text = path.lexically_normal().generic_string();
  if (!text.starts_with(kInside)) return {};
  const auto found = std::ranges::find(kFiles, text.substr(kInside.size()), &Embedded::path);
  if (found == kFiles.end()) return {};
  return std::span(found->begin, found->end);
}

bool is_file(const std::filesystem::path& path) {
  std::error_code none;
  return embedded_file(path) || std::filesystem::is_regular_file(path, none);
}

std::string read_file(const std::filesystem::path& path, uint64_t bytes_max, Fault fault) {
  ensure(is_file(path), fault, "cannot open {}", path.string());
  const auto inside = embedded_file(path);
  const uint64_t bytes = inside ? inside->size() : std::filesystem::file_size(path);
  ensure(bytes <= bytes_max, fault, "{} has {} bytes, at most {} are read", path.string(), bytes,
         bytes_max);
  if (inside) return {reinterpret_cast<const char*>(inside->data()), inside->size()};
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(bytes));
  ensure(file.gcount() == static_cast<std::streamsize>(bytes), fault,
         "{} could not be read to its end ({} bytes)", path.string(), bytes);
  return text;
}

}  // namespace tendon
