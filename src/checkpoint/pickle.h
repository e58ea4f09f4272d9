// Files of torch.save that hold plain values, such as openpi's metadata.pt: a zip archive around
// one pickle. Nothing in it is run: what is no plain value becomes a placeholder with its name.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

namespace tendon {

// The root object: dictionaries with text as keys (others are left out), lists and tuples, texts
// (bytes beyond ASCII become '?'), numbers, booleans, None. An object of a class is
// {"python": "module.Class"}, whatever it was made of. Throws Error(Fault::checkpoint), naming
// file and opcode, for other opcodes, for what is cut short, and beyond the limits: files of 16 MB
// whose pickle is stored as it is and has at most 1 MB, 65,536 values, nested 64 deep.
nlohmann::json read_torch_file(const std::filesystem::path& path);

// The same of a pickle's bytes.
nlohmann::json read_pickle(std::span<const std::byte> bytes, const std::string& file);
// The bytes of data.pkl in an archive.
std::span<const std::byte> find_pickle(std::span<const std::byte> archive, const std::string& file);

}  // namespace tendon
