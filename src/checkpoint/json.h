// JSON configuration files, read with limits and errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace tendon {

// Throws Error(Fault::checkpoint) when the file is missing, larger than bytes_max, nested deeper
// than 64 levels or not JSON (with the position).
nlohmann::json read_json(const std::filesystem::path& path, uint64_t bytes_max = 64 << 20);
nlohmann::json parse_json(std::string_view text, const std::string& file);

// Typed members of an object; each throws Error(Fault::checkpoint) naming file, key and the type
// found.
int64_t json_int(const nlohmann::json& object, const std::string& key, const std::string& file);
double json_number(const nlohmann::json& object, const std::string& key, const std::string& file);
bool json_bool(const nlohmann::json& object, const std::string& key, const std::string& file);
std::string json_string(const nlohmann::json& object, const std::string& key,
                        const std::string& file);

}  // namespace tendon
