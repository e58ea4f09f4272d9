#include "serve/recording.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <system_error>

#include "client/bytes.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "tendon-record ", kVersioned = "tendon-record 1\n";
constexpr const char* kSuffix = ".tendon-record";
constexpr size_t kHashBytesMax = 4096;
constexpr int kNamesTried = 100;

// As they lie in the file, the checksum always second.
static_assert(std::endian::native == std::endian::little);
struct [[gnu::packed]] FileHead {
  uint32_t hash_bytes = 0, checksum = 0;
  int64_t start_unix_ns = 0;
};
struct [[gnu::packed]] RecordHead {
  uint32_t message_bytes = 0, checksum = 0, kind = 0;
  uint64_t connection = 0, time_ns = 0, seed = 0;
};
static_assert(sizeof(FileHead) == 16 && sizeof(RecordHead) == 36);

template <class Head>
std::span<const uint8_t> bytes_of_head(const Head& head) {
  return {reinterpret_cast<const uint8_t*>(&head), sizeof(Head)};
}

template <class Head>
uint32_t checksum(const Head& head, std::span<const uint8_t> rest) {
  const std::span<const uint8_t> bytes = bytes_of_head(head), behind = bytes.subspan(8);
  auto sum = crc32_z(0, bytes.data(), 4);
  sum = crc32_z(sum, behind.data(), behind.size());
  // zlib answers a null pointer with the start value.
  if (!rest.empty()) sum = crc32_z(sum, rest.data(), rest.size());
  return static_cast<uint32_t>(sum);
}

bool read_bytes(std::ifstream& file, void* to, size_t bytes) {
  return file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes)).good();
}

std::string error_text() { return std::error_code(errno, std::generic_category()).message(); }

// A start within the same second and under the same number (as containers have it) gets "_2", which
// sorts behind its predecessor.
int create_file(const fs::path& folder, fs::path& path) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> time{};
  std::strftime(time.data(), time.size(), "%Y%m%d-%H%M%S", &utc);
  for (int i = 1; i <= kNamesTried; ++i) {
    const std::string again = i == 1 ? "" : fmt::format("_{}", i);
    path = folder / fmt::format("session-{}-{}{}{}", time.data(), ::getpid(), again, kSuffix);
    const int file =
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (file >= 0) return file;
    if (errno != EEXIST) break;
  }
  fail(Fault::usage, "cannot record into '{}': {}", path.string(), error_text());
}

}  // namespace

Recorder::Recorder(const fs::path& folder, std::string_view model_hash,
                   std::function<void(std::string)> warn)
    : warn_(std::move(warn)) {
  ensure(model_hash.size() <= kHashBytesMax, Fault::internal, "a hash of {} bytes",
         model_hash.size());
  std::error_code error;
  fs::create_directories(folder, error);
  ensure(!error, Fault::usage, "cannot make the folder '{}' for recordings: {}", folder.string(),
         error.message());
  file_ = create_file(folder, path_);

  const std::chrono::nanoseconds since_1970 = std::chrono::system_clock::now().time_since_epoch();
  FileHead head{.hash_bytes = static_cast<uint32_t>(model_hash.size()),
                .start_unix_ns = since_1970.count()};
  head.checksum = checksum(head, bytes_of(model_hash));
  std::string start(kVersioned);
  start.append(reinterpret_cast<const char*>(&head), sizeof(head));
  // A file without its header is no recording.
  if (!append(bytes_of(start), bytes_of(model_hash))) ::unlink(path_.c_str());
}

Recorder::~Recorder() {
  if (file_ >= 0) ::close(file_);
}

void Recorder::write(RecordKind kind, uint64_t connection, uint64_t seed,
                     std::span<const uint8_t> message, Clock::time_point at) {
  if (!recording()) return;
  if (message.size() > kRecordMessageBytesMax) {
    stop(fmt::format("a message has {} bytes, recordings hold at most {}", message.size(),
                     kRecordMessageBytesMax));
    return;
  }
  const std::chrono::nanoseconds time = std::max(at - start_, Clock::duration(0));
  RecordHead head{.message_bytes = static_cast<uint32_t>(message.size()),
                  .kind = static_cast<uint32_t>(kind),
                  .connection = connection,
                  .time_ns = static_cast<uint64_t>(time.count()),
                  .seed = seed};
  head.checksum = checksum(head, message);
  append(bytes_of_head(head), message);
}

// Everything, or nothing and the end of the recording.
bool Recorder::append(std::span<const uint8_t> head, std::span<const uint8_t> rest) {
  const uint64_t wanted = head.size() + rest.size();
  uint64_t written = 0;
  while (written < wanted) {
    const size_t in_head = std::min(head.size(), static_cast<size_t>(written));
    const size_t in_rest = static_cast<size_t>(written) - in_head;
    // writev() takes pointers to mutable bytes and does not change them.
    std::array<iovec, 2> parts = {
        iovec{const_cast<uint8_t*>(head.data()) + in_head, head.size() - in_head},
        iovec{const_cast<uint8_t*>(rest.data()) + in_rest, rest.size() - in_rest}};
    const ssize_t n = ::writev(file_, parts.data(), static_cast<int>(parts.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const std::string why = n == 0 ? "nothing was written" : error_text();
      // Where even this fails, the reader finds the torn record.
      const bool undone = ::ftruncate(file_, static_cast<off_t>(bytes_)) == 0;
      stop(why + (undone ? "" : "; its last record is incomplete"));
      return false;
    }
    written += static_cast<uint64_t>(n);
  }
  bytes_ += wanted;
  return true;
}

void Recorder::stop(const std::string& why) {
  ::close(file_);
  file_ = -1;
  if (warn_)
    warn_(fmt::format("recording stopped, serving goes on: '{}' has {} bytes: {}", path_.string(),
                      bytes_, why));
}

RecordingReader::RecordingReader(const fs::path& path) {
  const std::string name = path.string();
  std::error_code error;
  // Opening a pipe would wait for its other end.
  const bool regular = fs::is_regular_file(path, error);
  ensure(regular, Fault::input, "cannot read the recording '{}': {}", name,
         error ? error.message() : "not a file");
  left_ = fs::file_size(path, error);
  file_.open(path, std::ios::binary);
  ensure(!error && file_.good(), Fault::input, "cannot read the recording '{}': {}", name,
         error ? error.message() : error_text());

  std::string magic(kVersioned.size(), '\0');
  ensure(read_bytes(file_, magic.data(), magic.size()) && magic.starts_with(kMagic), Fault::input,
         "'{}' is no recording of tendon serve", name);
  ensure(magic == kVersioned, Fault::input,
         "'{}' is a recording of another version; this program reads version 1", name);
  FileHead head;
  const bool whole = read_bytes(file_, &head, sizeof(head));
  const uint64_t header_bytes = magic.size() + sizeof(head) + head.hash_bytes;
  const bool fits = whole && head.hash_bytes <= kHashBytesMax && header_bytes <= left_;
  model_hash_.resize(fits ? head.hash_bytes : 0);
  ensure(fits && read_bytes(file_, model_hash_.data(), model_hash_.size()) &&
             head.checksum == checksum(head, bytes_of(model_hash_)),
         Fault::input, "the header of the recording '{}' is cut or corrupt", name);
  start_unix_ns_ = head.start_unix_ns;
  left_ -= header_bytes;
}

std::optional<Record> RecordingReader::next() {
  if (left_ == 0) return {};
  if (left_ < sizeof(RecordHead)) return drop("torn record");
  RecordHead head;
  constexpr const char* kShorter = "the file became shorter while it was read";
  if (!read_bytes(file_, &head, sizeof(head))) return drop(kShorter);
  if (head.message_bytes > kRecordMessageBytesMax) return drop("corrupt record");
  if (head.message_bytes > left_ - sizeof(head)) return drop("torn record");
  Record record{.kind = static_cast<RecordKind>(head.kind),
                .connection = head.connection,
                .time_ns = head.time_ns,
                .seed = head.seed,
                .message = std::vector<uint8_t>(head.message_bytes)};
  if (!read_bytes(file_, record.message.data(), record.message.size())) return drop(kShorter);
  if (head.checksum != checksum(head, record.message)) return drop("corrupt record");
  if (record.kind < RecordKind::request || record.kind > RecordKind::text_error)
    return drop(fmt::format("record of the unknown kind {}", uint32_t{head.kind}));
  left_ -= sizeof(head) + record.message.size();
  return record;
}

// The place of the next record is unknown where one is cut or corrupt.
std::optional<Record> RecordingReader::drop(std::string_view why) {
  warning_ = fmt::format("last {} bytes dropped: {}", left_, why);
  left_ = 0;
  return {};
}

std::vector<fs::path> recordings_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code unknown;  // a file that has gone is none
    if (entry->path().extension() == kSuffix && entry->is_regular_file(unknown))
      found.push_back(entry->path());
  }
  ensure(!error, Fault::input, "cannot list the folder '{}': {}", folder.string(), error.message());
  std::ranges::sort(found);
  return found;
}

}  // namespace tendon
