#include "checkpoint/json.h"

#include "checkpoint/files.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr int kDepthMax = 64;

// The member `key` of `object`, which `is` of the right type.
template <class T>
T member(const nlohmann::json& object, const std::string& key, const std::string& file,
         bool (nlohmann::json::*is)() const noexcept, const char* expected) {
  ensure(object.is_object() && object.contains(key), Fault::checkpoint, "{}: '{}' is missing", file,
         key);
  const nlohmann::json& value = object.at(key);
  if (!(value.*is)())
    fail(Fault::checkpoint, "{}: '{}' is {}, expected {}", file, key, value.dump().substr(0, 60),
         expected);
  return value.get<T>();
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file) {
  const auto limit_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    ensure(depth <= kDepthMax, Fault::checkpoint, "{}: nested deeper than {} levels", file,
           kDepthMax);
    return true;
  };
  try {
    return nlohmann::json::parse(text, limit_depth);
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::checkpoint, "{} is not valid JSON: {}", file, e.what());
  }
}

nlohmann::json read_json(const std::filesystem::path& path, uint64_t bytes_max) {
  return parse_json(read_file(path, bytes_max), path.string());
}

int64_t json_int(const nlohmann::json& object, const std::string& key, const std::string& file) {
  return member<int64_t>(object, key, file, &nlohmann::json::is_number_integer, "an integer");
}

double json_number(const nlohmann::json& object, const std::string& key, const std::string& file) {
  return member<double>(object, key, file, &nlohmann::json::is_number, "a number");
}

bool json_bool(const nlohmann::json& object, const std::string& key, const std::string& file) {
  return member<bool>(object, key, file, &nlohmann::json::is_boolean, "true or false");
}

std::string json_string(const nlohmann::json& object, const std::string& key,
                        const std::string& file) {
  return member<std::string>(object, key, file, &nlohmann::json::is_string, "a string");
}

}  // namespace tendon
