// What a server was asked and what it answered, byte for byte, in an append-only file: to look at
// what a robot saw, and to ask a changed policy the same again.
//
// Numbers are little-endian; checksums are zlib's CRC-32.
//   header  "tendon-record 1\n", u32 bytes of the model's hash, u32 checksum, i64 start in Unix
//           nanoseconds, the hash
//   record  u32 bytes of the message, u32 checksum, u32 kind, u64 connection, u64 nanoseconds since
//           the start on a clock that never jumps, u64 seed, the message
// A checksum covers all of its header or record but itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tendon {

enum class RecordKind : uint32_t { request = 1, reply = 2, text_error = 3 };

struct Record {
  RecordKind kind = RecordKind::request;
  uint64_t connection = 0;
  uint64_t time_ns = 0;  // since the server's start
  uint64_t seed = 0;     // of the noise that the answer was drawn with
  std::vector<uint8_t> message;
};

constexpr size_t kRecordMessageBytesMax = 64 << 20;  // as the server's largest message

// Writes one file; write() belongs to one thread. Every record is one write straight to the file: a
// server that is killed loses at most the last one.
class Recorder {
 public:
  using Clock = std::chrono::steady_clock;
  // Makes `folder`, when missing, and session-YYYYMMDD-HHMMSS-PID.tendon-record (UTC) in it, for
  // its owner's eyes only. Throws Error(Fault::usage) when that is not possible. A disk that is
  // already full is only a warning: serving goes on. `warn` is told at most once, why it stopped.
  Recorder(const std::filesystem::path& folder, std::string_view model_hash,
           std::function<void(std::string)> warn = {});
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // A record that does not fit (disk full) leaves no trace in the file, is a warning and
  // the end of the recording. Later calls do nothing.
  void write(RecordKind kind, uint64_t connection, uint64_t seed, std::span<const uint8_t> message,
             Clock::time_point at = Clock::now());

  bool recording() const { return file_ >= 0; }
  const std::filesystem::path& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }  // in the file

 private:
  bool append(std::span<const uint8_t> head, std::span<const uint8_t> rest);
  void stop(const std::string& why);

  std::function<void(std::string)> warn_;
  std::filesystem::path path_;
  int file_ = -1;  // -1: stopped
  uint64_t bytes_ = 0;
  const Clock::time_point start_ = Clock::now();
};

// Reads record by record, so that a recording may be larger than memory. A file that is still being
// written is read up to its length at the beginning.
class RecordingReader {
 public:
  // Throws Error(Fault::input) for what is no recording, naming the file.
  explicit RecordingReader(const std::filesystem::path& path);

  // Nothing at the end, and from the first record on that is cut or corrupt: warning() says so.
  std::optional<Record> next();

  const std::string& model_hash() const { return model_hash_; }
  int64_t start_unix_ns() const { return start_unix_ns_; }
  const std::string& warning() const { return warning_; }  // "": every byte was read

 private:
  std::optional<Record> drop(std::string_view why);

  std::ifstream file_;
  uint64_t left_ = 0;  // bytes that were not read yet
  std::string model_hash_, warning_;
  int64_t start_unix_ns_ = 0;
};

// The recordings of a folder, oldest first. Throws Error(Fault::input) when it cannot be listed.
std::vector<std::filesystem::path> recordings_in(const std::filesystem::path& folder);

}  // namespace tendon
