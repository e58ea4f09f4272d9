#include "checkpoint/json.h"

#include "checkpoint/files.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr int kDepthMax = 64;

const nlohmann::json& member(const nlohmann::json& object, const std::string& key,
                             const std::string& file) {
  ensure(object.is_object() && object.contains(key), Fault::checkpoint, "{}: '{}' is missing", file,
         key);
  return object.at(key);
}

[[noreturn]] void wrong_type(const nlohmann::json& value, const std::string& key,
                             const std::string& file, const char* expected) {
  fail(Fault::checkpoint, "{}: '{}' is {}, expected {}", file, key, value.dump().substr(0, 60),
       expected);
}

template <class Json>
Json parse(std::string_view text, const std::string& file) {
  const auto limit_depth = [&](int depth, typename Json::parse_event_t, Json&) {
    ensure(depth <= kDepthMax, Fault::checkpoint, "{}: nested deeper than {} levels", file,
           kDepthMax);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::checkpoint, "{} is not valid JSON: {}", file, e.what());
  }
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file) {
  return parse<nlohmann::json>(text, file);
}

nlohmann::json read_json(const std::filesystem::path& path, uint64_t bytes_max) {
  return parse_json(read_file(path, bytes_max), path.string());
}

nlohmann::ordered_json read_ordered_json(const std::filesystem::path& path) {
  return parse<nlohmann::ordered_json>(read_file(path, 128 << 10), path.string());
}

int64_t json_int(const nlohmann::json& object, const std::string& key, const std::string& file) {
  const nlohmann::json& value = member(object, key, file);
  if (!value.is_number_integer()) wrong_type(value, key, file, "an integer");
  return value.get<int64_t>();
}

double json_number(const nlohmann::json& object, const std::string& key, const std::string& file) {
  const nlohmann::json& value = member(object, key, file);
  if (!value.is_number()) wrong_type(value, key, file, "a number");
  return value.get<double>();
}

bool json_bool(const nlohmann::json& object, const std::string& key, const std::string& file) {
  const nlohmann::json& value = member(object, key, file);
  if (!value.is_boolean()) wrong_type(value, key, file, "true or false");
  return value.get<bool>();
}

std::string json_string(const nlohmann::json& object, const std::string& key,
                        const std::string& file) {
  const nlohmann::json& value = member(object, key, file);
  if (!value.is_string()) wrong_type(value, key, file, "a string");
  return value.get<std::string>();
}

}  // namespace tendon
