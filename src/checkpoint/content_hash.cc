#include "checkpoint/content_hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "tensor/parallel.h"

namespace tendon {
namespace {

constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;

uint64_t mix(uint64_t h) {
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  return h ^ (h >> 32);
}

// Pieces of 64 MiB, so that one large tensor is shared out too.
constexpr size_t kPiece = size_t{64} << 20;

}  // namespace

uint64_t content_hash(std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 8, kBlock = kLanes * sizeof(uint64_t);
  std::array<uint64_t, kLanes> lanes{1, 2, 3, 4, 5, 6, 7, 8};
  const auto take = [&lanes](const std::byte* from) {
    std::array<uint64_t, kLanes> words{};
    std::memcpy(words.data(), from, kBlock);
    for (size_t l = 0; l < kLanes; ++l) lanes[l] = (lanes[l] ^ words[l]) * kOdd;
  };
  size_t at = 0;
  for (; at + kBlock <= bytes.size(); at += kBlock) take(bytes.data() + at);
  std::array<std::byte, kBlock> rest{};
  std::ranges::copy(bytes.subspan(at), rest.begin());
  take(rest.data());
  uint64_t h = mix(bytes.size());
  for (const uint64_t lane : lanes) h = mix(h ^ lane) * kOdd;
  return h;
}

std::string content_hash(std::span<const HostTensor> tensors,
                         const std::map<std::string, std::string>& metadata, int threads,
                         const std::string& forget) {
  std::vector<HostTensor> pieces;
  std::string labels;
  for (const auto& [key, value] : metadata) labels += fmt::format("{} {}\n", key, value);
  for (const HostTensor& t : tensors) {
    labels += fmt::format("{} {} {}\n", t.name, name(t.dtype), to_string(t.shape));
    for (size_t at = 0; at < t.bytes.size(); at += kPiece) {
      pieces.push_back(t);
      pieces.back().bytes = t.bytes.subspan(at, std::min(kPiece, t.bytes.size() - at));
    }
  }
  std::vector<uint64_t> hashes(pieces.size());
  const int used = threads > 0 ? threads : hardware_threads();
  parallel_for(std::ssize(pieces), used, [&](int64_t first, int64_t last) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
      hashes[i] = content_hash(pieces[i].bytes);
      if (pieces[i].name == forget) forget_pages(pieces[i]);
    }
  });
  uint64_t h = content_hash(std::as_bytes(std::span(labels)));
  for (const uint64_t hash : hashes) h = mix(h ^ hash) * kOdd;
  return fmt::format("{:016x}", h);
}

}  // namespace tendon
