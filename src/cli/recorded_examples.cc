#include "cli/recorded_examples.h"

#include <functional>
#include <map>
#include <memory>

#include "client/bytes.h"
#include "client/wire_fields.h"
#include "serve/recording.h"
#include "serve/request.h"
#include "tensor/check.h"
#include "tensor/random.h"

namespace tendon::cli {
namespace {

struct Recorded {
  std::string where;
  Bytes request, reply;
  size_t row = 0;  // of a request that is a batch
};

size_t requests_in(const msgpack::Value& request) {
  const msgpack::Value* batch = request.find("batch");
  return batch ? batch->list.size() : 1;
}

const msgpack::Value& request_at(const msgpack::Value& request, size_t row) {
  const msgpack::Value* batch = request.find("batch");
  return batch ? batch->list.at(row) : request;
}

void read_file(const std::filesystem::path& path, const std::function<void(Recorded)>& take) {
  RecordingReader reader(path);
  std::map<uint64_t, Recorded> asked;  // by connection
  const auto offer = [&](Recorded recorded) {
    const msgpack::Value request = msgpack::decode(recorded.request);
    for (; recorded.row < requests_in(request); ++recorded.row)
      if (request_at(request, recorded.row).find("actions") || !recorded.reply.empty())
        take(recorded);
  };
  for (int64_t number = 1; std::optional<Record> record = reader.next(); ++number) {
    Recorded& last = asked[record->connection];
    if (record->kind == RecordKind::reply) last.reply = std::move(record->message);
    if (!last.request.empty()) offer(std::move(last));
    last = {};
    if (record->kind == RecordKind::request)
      last = {fmt::format("{}, record {}", path.filename().string(), number),
              std::move(record->message)};
  }
  for (auto& [connection, last] : asked)
    if (!last.request.empty()) offer(std::move(last));
  if (!reader.warning().empty())
    fmt::print(stderr, "warning: {}: {}\n", path.filename().string(), reader.warning());
}

// What a row was answered: of a list, the first of its chunks.
RemoteActions answer_of(const Recorded& recorded, const Requests& asked) {
  size_t chunk = 0;
  for (size_t row = 0; row < recorded.row; ++row)
    chunk += static_cast<size_t>(asked.rows[row].samples);
  const std::vector<RemoteActions> chunks = read_replies(msgpack::decode(recorded.reply)).rows;
  ensure(chunk < chunks.size(), Fault::input, "its reply has {} chunks", chunks.size());
  return chunks[chunk];
}

// The pictures are copied: they would be views into the message.
Example example_of(const Recorded& recorded, const ModelCard& card) try {
  const msgpack::Value request = msgpack::decode(recorded.request);
  Requests asked = read_requests(request, card, Dialect::openpi);
  const msgpack::Value& row = request_at(request, recorded.row);
  const RemoteActions chunk = row.find("actions") ? read_reply(row) : answer_of(recorded, asked);
  ensure(chunk.dim == card.action_dim, Fault::input, "its actions have {} dims, this policy {}",
         chunk.dim, card.action_dim);
  Example example{std::move(asked.rows[recorded.row].observation), chunk.values};
  for (auto& [camera, image] : example.observation.images) image.rgb.owned();
  return example;
} catch (const Error& e) {
  fail(e.fault(), "{}: {}", recorded.where, e.what());
}

}  // namespace

std::vector<Example> recorded_examples(const std::string& folder, const ModelCard& card,
                                       size_t count) {
  std::vector<Recorded> sample;
  size_t seen = 0;
  // Fair, and the same ones every time: the n-th takes a place with probability count / n.
  const auto take = [&](Recorded recorded) {
    ++seen;
    if (sample.size() < count) return sample.push_back(std::move(recorded));
    const size_t place = philox({{static_cast<uint32_t>(seen)}}, 1).word[0] % seen;
    if (place < count) sample[place] = std::move(recorded);
  };
  for (const std::filesystem::path& file : recordings_in(folder)) read_file(file, take);
  std::vector<Example> examples;
  examples.reserve(sample.size());
  for (const Recorded& recorded : sample) examples.push_back(example_of(recorded, card));
  ensure(!examples.empty(), Fault::input,
         "{} holds no recording with actions; `tendon serve --record` and "
         "examples/dataset_to_recording.py write them",
         folder);
  return examples;
}

}  // namespace tendon::cli
