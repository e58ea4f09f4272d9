// The frames of a peer whose handshake was right.
#include "../wire.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Connection connection;
  const std::string answer = connection.talk(
      "GET / HTTP/1.1\r\nHost: robot\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
      "Authorization: Api-Key key\r\n\r\n",
      {reinterpret_cast<const char*>(data), size});
  fuzz::require(answer.starts_with("HTTP/1.1 101 "));
  return 0;
}
