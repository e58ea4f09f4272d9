// What comes first on the policy port: a request head.
#include "../wire.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Connection connection;
  const std::string answer = connection.talk("", {reinterpret_cast<const char*>(data), size});
  fuzz::require(answer.empty() || answer.starts_with("HTTP/1.1 "));
  return 0;
}
