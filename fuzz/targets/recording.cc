// A recorded session. Its checksums are set right first where the lengths allow it: whoever means
// harm can compute them, too.
#include "serve/recording.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "../target.h"

using namespace tendon;

namespace {

constexpr size_t kMagicBytes = 16, kHeaderBytes = 16, kRecordBytes = 36;  // see recording.h

uint32_t field(const std::string& file, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, file.data() + at, sizeof(value));
  return value;
}

// The checksum, 4 bytes behind `at`, covers the rest of the head and what follows it.
bool sum(std::string& file, size_t at, size_t head_bytes) {
  if (at + head_bytes > file.size()) return false;
  const size_t more = field(file, at);
  if (more > file.size() - at - head_bytes) return false;
  const auto* bytes = reinterpret_cast<const Bytef*>(file.data());
  uLong crc = crc32(0, bytes + at, 4);
  crc = crc32(crc, bytes + at + 8, static_cast<uInt>(head_bytes - 8 + more));
  const auto value = static_cast<uint32_t>(crc);
  std::memcpy(file.data() + at + 4, &value, sizeof(value));
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryFile file;
  std::string content(reinterpret_cast<const char*>(data), size);
  size_t at = kMagicBytes;
  for (size_t head = kHeaderBytes; sum(content, at, head); head = kRecordBytes)
    at += head + field(content, at);
  file.fill(content);
  fuzz::taken({Fault::input}, [&] {
    RecordingReader reader(file.path());
    size_t read = 0;
    while (const auto record = reader.next()) read += record->message.size();
    fuzz::require(read <= size);
  });
  return 0;
}
