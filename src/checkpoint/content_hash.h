// A fast hash that notices accidental changes of large files. Not a signature: whoever can write
// the file can also write the hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "checkpoint/safetensors.h"

namespace tendon {

// Eight interleaved 64-bit lanes, each h = (h xor word) · odd constant, mixed at the end: changing
// any one word always changes the result. The same on every machine.
uint64_t content_hash(std::span<const std::byte> bytes);

// Over names, types, shapes and bytes of all tensors, by several threads, and over the metadata, in
// which statistics may stand; 16 hexadecimal digits. Where `forget` names a mapped tensor, its
// pages are given back afterwards.
std::string content_hash(std::span<const HostTensor> tensors,
                         const std::map<std::string, std::string>& metadata, int threads,
                         const std::string& forget = {});

}  // namespace tendon
