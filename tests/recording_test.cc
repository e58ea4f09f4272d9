// labels: server
#include "serve/recording.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "test_files.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

std::vector<uint8_t> message_of(size_t bytes, uint64_t salt) {
  std::vector<uint8_t> message(bytes);
  for (size_t i = 0; i < bytes; ++i) message[i] = static_cast<uint8_t>(i * 7 + salt);
  return message;
}

struct Session {
  std::string model_hash;
  int64_t start_unix_ns = 0;
  std::vector<Record> records;
  std::string warning;
};

Session read_recording(const fs::path& path) {
  RecordingReader reader(path);
  Session recording{.model_hash = reader.model_hash(), .start_unix_ns = reader.start_unix_ns()};
  while (std::optional<Record> record = reader.next())
    recording.records.push_back(std::move(*record));
  recording.warning = reader.warning();
  return recording;
}

// Three records of one request; the reply's seed needs all 64 bits.
fs::path record_small_session(const fs::path& folder) {
  Recorder recorder(folder, "hash of a model");
  recorder.write(RecordKind::request, 7, 0, message_of(20, 1));
  recorder.write(RecordKind::reply, 7, 0xfedcba9876543210, message_of(11, 2));
  recorder.write(RecordKind::text_error, uint64_t{1} << 40, 0, {});
  return recorder.path();
}

bool same(const Record& a, const Record& b) {
  return a.kind == b.kind && a.connection == b.connection && a.time_ns == b.time_ns &&
         a.seed == b.seed && a.message == b.message;
}

// The exit code of a child that runs `body` with files of at most so many bytes, as a full disk
// shows itself: part of a record is written, the rest fails.
template <class Body>
int on_a_disk_of(rlim_t bytes, Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {bytes, bytes};
    ::_exit(::setrlimit(RLIMIT_FSIZE, &limit) != 0 ? 10 : body());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct Recording : testing::Test {
  const Scratch scratch{"recording"};
};

TEST_F(Recording, gives_back_what_was_written) {
  const Session read = read_recording(record_small_session(scratch.path() / "a" / "b"));
  EXPECT_EQ(read.warning, "");
  EXPECT_EQ(read.model_hash, "hash of a model");
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  EXPECT_LE(read.start_unix_ns, now_ns);
  EXPECT_GT(read.start_unix_ns, now_ns - int64_t{60'000'000'000});
  ASSERT_EQ(read.records.size(), 3);
  const Record written[] = {
      {RecordKind::request, 7, read.records[0].time_ns, 0, message_of(20, 1)},
      {RecordKind::reply, 7, read.records[1].time_ns, 0xfedcba9876543210, message_of(11, 2)},
      {RecordKind::text_error, uint64_t{1} << 40, read.records[2].time_ns, 0, {}}};
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same(read.records[i], written[i])) << i;
  EXPECT_TRUE(std::ranges::is_sorted(read.records, {}, &Record::time_ns));
}

TEST_F(Recording, times_count_from_the_start_of_the_recorder) {
  Recorder recorder(scratch.path(), "");
  const auto now = Recorder::Clock::now();
  recorder.write(RecordKind::request, 1, 0, {}, now - std::chrono::hours(1));
  recorder.write(RecordKind::request, 1, 0, {}, now + std::chrono::hours(1));
  const Session read = read_recording(recorder.path());
  ASSERT_EQ(read.records.size(), 2);
  EXPECT_EQ(read.records[0].time_ns, 0);
  EXPECT_GE(read.records[1].time_ns, uint64_t{3'600'000'000'000});
  EXPECT_LT(read.records[1].time_ns, uint64_t{3'660'000'000'000});
}

TEST_F(Recording, a_file_is_named_after_its_start_and_private) {
  const fs::path first = record_small_session(scratch.path());
  const fs::path second = record_small_session(scratch.path());
  const std::string pid = std::to_string(::getpid());
  std::string form = first.filename().string();
  for (size_t i = 0; i < std::min<size_t>(form.size(), 24); ++i)
    if (form[i] >= '0' && form[i] <= '9') form[i] = '0';
  EXPECT_EQ(form, "session-00000000-000000-" + pid + ".tendon-record") << first;
  EXPECT_NE(first, second);
  struct stat facts {};
  ASSERT_EQ(::stat(first.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0600);
  scratch.write("notes.txt", "");
  fs::create_directory(scratch.path() / "folder.tendon-record");
  EXPECT_EQ(recordings_in(scratch.path()), (std::vector{first, second}));
}

TEST_F(Recording, a_cut_file_gives_the_records_before_the_cut) {
  const std::string whole = read_whole(record_small_session(scratch.path()));
  const Session all = read_recording(scratch.write("whole", whole));
  ASSERT_EQ(all.records.size(), 3);
  constexpr size_t kHead = 36;
  const size_t third = whole.size() - kHead, second = third - kHead - 11,
               first = second - kHead - 20;
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const fs::path cut = scratch.write("cut", whole.substr(0, bytes));
    if (bytes < first) {
      EXPECT_TRUE(refuses(Fault::input, cut.string(), [&] { read_recording(cut); }));
      continue;
    }
    const Session read = read_recording(cut);
    const size_t complete = bytes < second ? 0 : bytes < third ? 1 : 2;
    const size_t rest = bytes - std::array{first, second, third}[complete];
    ASSERT_EQ(read.records.size(), complete) << bytes;
    for (size_t i = 0; i < complete; ++i) EXPECT_TRUE(same(read.records[i], all.records[i]));
    EXPECT_EQ(read.warning,
              rest == 0 ? "" : fmt::format("last {} bytes dropped: torn record", rest));
  }
}

TEST_F(Recording, a_flipped_bit_never_changes_a_record) {
  const std::string whole = read_whole(record_small_session(scratch.path()));
  const Session all = read_recording(scratch.write("whole", whole));
  Patched file(scratch.write("flipped", whole));
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    if (bit > 0) file.restore((bit - 1) / 8, 1);
    file.put(bit / 8, std::string(1, static_cast<char>(whole[bit / 8] ^ (1 << (bit % 8)))));
    Session read;
    try {
      read = read_recording(scratch.path() / "flipped");
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::input);
      continue;  // the header
    }
    EXPECT_EQ(read.model_hash, all.model_hash);
    EXPECT_EQ(read.start_unix_ns, all.start_unix_ns);
    ASSERT_LT(read.records.size(), all.records.size()) << bit;
    EXPECT_NE(read.warning, "") << bit;
    for (size_t i = 0; i < read.records.size(); ++i)
      ASSERT_TRUE(same(read.records[i], all.records[i])) << bit;
  }
}

TEST_F(Recording, zeros_behind_the_last_record_are_dropped) {
  const std::string whole = read_whole(record_small_session(scratch.path()));
  const Session read = read_recording(scratch.write("zeros", whole + std::string(4096, '\0')));
  EXPECT_EQ(read.records.size(), 3);
  EXPECT_EQ(read.warning, "last 4096 bytes dropped: corrupt record");
}

// Its checksum is right, so that only its length can be what is wrong with it.
TEST_F(Recording, a_record_beyond_the_largest_message_is_never_read) {
  std::string file = read_whole(record_small_session(scratch.path()));
  std::string head = file.substr(file.size() - 36);  // of the third record
  head.replace(0, 4, std::string("\x01\x00\x00\x04", 4));
  const std::string message(kRecordMessageBytesMax + 1, '\0');
  const std::string covered = head.substr(0, 4) + head.substr(8) + message;
  const auto sum = static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const uint8_t*>(covered.data()), covered.size()));
  for (size_t i = 0; i < 4; ++i) head[4 + i] = static_cast<char>(sum >> (8 * i));
  file.replace(file.size() - 36, 36, head);
  const Session read = read_recording(scratch.write("long", file + message));
  EXPECT_EQ(read.records.size(), 2);
  EXPECT_EQ(read.warning, "last 67108901 bytes dropped: corrupt record");
}

TEST_F(Recording, what_is_no_recording_is_refused_by_name) {
  const fs::path pipe = scratch.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const fs::path& path :
       {scratch.write("empty", ""), scratch.write("text", "tendon-recipe: two eggs, flour"), pipe,
        scratch.path(), scratch.path() / "absent"})
    EXPECT_TRUE(refuses(Fault::input, "'" + path.string() + "'", [&] { read_recording(path); }));
  const auto newer = scratch.write("new", "tendon-record 2\n" + std::string(64, 'x'));
  EXPECT_TRUE(refuses(Fault::input, "another version", [&] { read_recording(newer); }));
  EXPECT_TRUE(refuses(Fault::input, "", [&] { recordings_in(scratch.path() / "absent"); }));
}

TEST_F(Recording, a_killed_writer_leaves_a_readable_prefix) {
  size_t records = 0;
  for (int round = 0; round < 20; ++round) {
    const fs::path folder = scratch.path() / std::to_string(round);
    const pid_t child = ::fork();
    if (child == 0) {
      Recorder recorder(folder, "killed");
      for (uint64_t i = 0;; ++i)
        recorder.write(RecordKind::request, i, i, message_of(100 + i % 5000, i));
    }
    ::usleep(static_cast<useconds_t>(5'000 + 1'700 * round));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    const std::vector<fs::path> found =
        fs::exists(folder) ? recordings_in(folder) : std::vector<fs::path>{};
    if (found.empty() || fs::file_size(found[0]) == 0) continue;  // killed before it began
    const Session read = read_recording(found.at(0));
    for (uint64_t i = 0; i < read.records.size(); ++i) {
      ASSERT_EQ(read.records[i].connection, i);
      ASSERT_EQ(read.records[i].message, message_of(100 + i % 5000, i));
    }
    records += read.records.size();
  }
  EXPECT_GT(records, 100);
}

TEST_F(Recording, a_full_disk_stops_it_with_one_warning_and_no_partial_record) {
  const int code = on_a_disk_of(10'000, [&] {
    std::vector<std::string> warnings;
    Recorder recorder(scratch.path(), "full",
                      [&](const std::string& text) { warnings.push_back(text); });
    for (uint64_t i = 0; i < 50; ++i) recorder.write(RecordKind::reply, i, 0, message_of(997, i));
    if (recorder.recording()) return 11;
    if (warnings.size() != 1 || warnings[0].find("File too large") == std::string::npos) return 12;
    if (recorder.bytes() != fs::file_size(recorder.path())) return 13;
    return 0;
  });
  ASSERT_EQ(code, 0);
  const Session read = read_recording(recordings_in(scratch.path()).at(0));
  EXPECT_EQ(read.warning, "");
  ASSERT_EQ(read.records.size(), 9);
  for (uint64_t i = 0; i < 9; ++i) EXPECT_EQ(read.records[i].message, message_of(997, i));
}

TEST_F(Recording, a_disk_that_is_full_from_the_start_is_a_warning_and_leaves_no_file) {
  const int code = on_a_disk_of(10, [&] {
    int warnings = 0;
    Recorder recorder(scratch.path(), "full", [&](const std::string&) { ++warnings; });
    recorder.write(RecordKind::reply, 1, 0, message_of(10, 0));
    return recorder.recording() ? 11 : warnings == 1 ? 0 : 12;
  });
  ASSERT_EQ(code, 0);
  EXPECT_TRUE(recordings_in(scratch.path()).empty());
}

TEST_F(Recording, the_largest_message_fits_and_a_larger_one_ends_it) {
  int warnings = 0;
  Recorder recorder(scratch.path(), "", [&](const std::string&) { ++warnings; });
  const std::vector<uint8_t> largest = message_of(kRecordMessageBytesMax, 3);
  recorder.write(RecordKind::request, 1, 0, largest);
  EXPECT_EQ(warnings, 0);
  std::vector<uint8_t> larger = largest;
  larger.push_back(0);
  recorder.write(RecordKind::request, 1, 0, larger);
  recorder.write(RecordKind::request, 1, 0, {});  // would fit, but a gap would mislead
  EXPECT_EQ(warnings, 1);
  EXPECT_FALSE(recorder.recording());
  const Session read = read_recording(recorder.path());
  ASSERT_EQ(read.records.size(), 1);
  EXPECT_TRUE(read.records[0].message == largest);
  EXPECT_EQ(read.warning, "");
}

}  // namespace
}  // namespace tendon
