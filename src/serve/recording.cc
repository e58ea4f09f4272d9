#include "serve/recording.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <system_error>
#include <type_traits>

#include "serve/bytes.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "tendon-record ";
constexpr std::string_view kVersion = "1\n";
constexpr const char* kSuffix = ".tendon-record";
constexpr size_t kChecksumAt = 4;  // of what follows the magic, and of a record
constexpr size_t kHeaderBytes = 16;
constexpr size_t kRecordHeadBytes = 36;
constexpr size_t kHashBytesMax = 4096;
constexpr int kNamesTried = 100;

// The fields of a header or a record in their order on disk.
class Fields {
 public:
  explicit Fields(std::span<uint8_t> bytes) : bytes_(bytes) {}

  template <class T>
  void put(T value) {
    const auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i)
      bytes_[at_++] = static_cast<uint8_t>(static_cast<uint64_t>(bits) >> (8 * i));
  }

  template <class T>
  T get() {
    uint64_t bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i) bits |= uint64_t{bytes_[at_++]} << (8 * i);
    return static_cast<T>(bits);
  }

 private:
  std::span<uint8_t> bytes_;
  size_t at_ = 0;
};

uint32_t checksum(std::span<const uint8_t> head, std::span<const uint8_t> rest) {
  auto sum = crc32_z(0, nullptr, 0);
  sum = crc32_z(sum, head.data(), kChecksumAt);
  const auto behind = head.subspan(kChecksumAt + sizeof(uint32_t));
  sum = crc32_z(sum, behind.data(), behind.size());
  // zlib answers a null pointer with the start value.
  if (!rest.empty()) sum = crc32_z(sum, rest.data(), rest.size());
  return static_cast<uint32_t>(sum);
}

void put_checksum(std::span<uint8_t> head, std::span<const uint8_t> rest) {
  Fields(head.subspan(kChecksumAt)).put(checksum(head, rest));
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

Recorder::Recorder(const fs::path& folder, std::string_view model_hash, Options options)
    : options_(std::move(options)) {
  ensure(model_hash.size() <= kHashBytesMax, Fault::internal, "a hash of {} bytes",
         model_hash.size());
  std::error_code error;
  fs::create_directories(folder, error);
  ensure(!error, Fault::usage, "cannot make the folder '{}' for recordings: {}", folder.string(),
         error.message());
  file_ = create_file(folder, path_);

  const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
  std::array<uint8_t, kHeaderBytes> fields{};
  Fields to(fields);
  to.put(static_cast<uint32_t>(model_hash.size()));
  to.put(uint32_t{0});
  to.put(int64_t{std::chrono::duration_cast<std::chrono::nanoseconds>(since_1970).count()});
  put_checksum(fields, bytes_of(model_hash));
  std::string header(kMagic);
  header += kVersion;
  header.append(fields.begin(), fields.end());
  // A file without its header is no recording.
  if (!append(bytes_of(header), bytes_of(model_hash))) ::unlink(path_.c_str());
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
  const auto time = std::chrono::duration_cast<std::chrono::nanoseconds>(at - start_).count();
  std::array<uint8_t, kRecordHeadBytes> head{};
  Fields to(head);
  to.put(static_cast<uint32_t>(message.size()));
  to.put(uint32_t{0});
  to.put(static_cast<uint32_t>(kind));
  to.put(connection);
  to.put(static_cast<uint64_t>(std::max<decltype(time)>(time, 0)));
  to.put(seed);
  put_checksum(head, message);
  append(head, message);
}

// Everything, or nothing and the end of the recording.
bool Recorder::append(std::span<const uint8_t> head, std::span<const uint8_t> rest) {
  const uint64_t wanted = head.size() + rest.size();
  if (options_.bytes_max > 0 && bytes_ + wanted > options_.bytes_max) {
    stop(fmt::format("the next {} bytes exceed the limit of {}", wanted, options_.bytes_max));
    return false;
  }
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
  if (options_.warn)
    options_.warn(fmt::format("recording stopped, serving goes on: '{}' has {} bytes: {}",
                              path_.string(), bytes_, why));
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

  const std::string wanted = std::string(kMagic) + std::string(kVersion);
  std::string magic(wanted.size(), '\0');
  std::array<uint8_t, kHeaderBytes> head{};
  file_.read(magic.data(), static_cast<std::streamsize>(magic.size()));
  ensure(file_.good() && magic.starts_with(kMagic), Fault::input,
         "'{}' is no recording of tendon serve", name);
  ensure(magic == wanted, Fault::input,
         "'{}' is a recording of another version; this program reads version {}", name,
         kVersion[0]);
  file_.read(reinterpret_cast<char*>(head.data()), static_cast<std::streamsize>(head.size()));
  Fields from(head);
  const auto hash_bytes = from.get<uint32_t>();
  const auto sum = from.get<uint32_t>();
  start_unix_ns_ = from.get<int64_t>();
  const uint64_t before_hash = magic.size() + head.size();
  ensure(file_.good() && hash_bytes <= kHashBytesMax && before_hash + hash_bytes <= left_,
         Fault::input, "the header of the recording '{}' is cut or corrupt", name);
  model_hash_.resize(hash_bytes);
  file_.read(model_hash_.data(), static_cast<std::streamsize>(hash_bytes));
  ensure(file_.good() && sum == checksum(head, bytes_of(model_hash_)), Fault::input,
         "the header of the recording '{}' is cut or corrupt", name);
  left_ -= before_hash + hash_bytes;
}

std::optional<Record> RecordingReader::next() {
  if (left_ == 0) return {};
  if (left_ < kRecordHeadBytes) return drop("torn record");
  std::array<uint8_t, kRecordHeadBytes> head{};
  file_.read(reinterpret_cast<char*>(head.data()), static_cast<std::streamsize>(head.size()));
  if (!file_.good()) return drop("the file became shorter while it was read");
  Fields from(head);
  const auto message_bytes = from.get<uint32_t>();
  const auto sum = from.get<uint32_t>();
  Record record;
  record.kind = static_cast<RecordKind>(from.get<uint32_t>());
  record.connection = from.get<uint64_t>();
  record.time_ns = from.get<uint64_t>();
  record.seed = from.get<uint64_t>();
  if (message_bytes > kRecordMessageBytesMax) return drop("corrupt record");
  if (message_bytes > left_ - kRecordHeadBytes) return drop("torn record");
  record.message.resize(message_bytes);
  file_.read(reinterpret_cast<char*>(record.message.data()),
             static_cast<std::streamsize>(message_bytes));
  if (!file_.good()) return drop("the file became shorter while it was read");
  if (sum != checksum(head, record.message)) return drop("corrupt record");
  if (record.kind < RecordKind::request || record.kind > RecordKind::text_error)
    return drop(fmt::format("record of the unknown kind {}", static_cast<uint32_t>(record.kind)));
  left_ -= kRecordHeadBytes + message_bytes;
  return record;
}

// Where one record ends wrongly nobody knows where the next begins.
std::optional<Record> RecordingReader::drop(std::string_view why) {
  warning_ = fmt::format("last {} bytes dropped: {}", left_, why);
  left_ = 0;
  return {};
}

Recording read_recording(const fs::path& path) {
  RecordingReader reader(path);
  Recording recording{.model_hash = reader.model_hash(), .start_unix_ns = reader.start_unix_ns()};
  while (std::optional<Record> record = reader.next())
    recording.records.push_back(std::move(*record));
  recording.warning = reader.warning();
  return recording;
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
