// The messages between worker.cc and worker.py: one packet each, little-endian, no padding that is
// not named. A request is followed by its input ids, then by ids that are no longer used; a
// reply by its outputs, then by the text of an error.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tendon::tt {

constexpr int kWorkerProtocol = 1;
constexpr size_t kMessageBytesMax = 1 << 16;
// The shared memory file is a tensor file of the library: its header, written by the worker, then
// the bytes as the device stores them. Downloads lie at its beginning.
constexpr size_t kFileHeaderBytes = 4096;

enum class Verb : uint8_t {  // VERBS in worker.py
  run,
  upload,
  download,
  begin_trace,
  end_trace,
  replay_trace,
  release_trace,
  release,
  close,
};

struct WireRequest {  // REQUEST in worker.py
  Verb verb = Verb::run;
  uint8_t call = 0, format = 0, layout = 0, memory = 0, activation = 0, fidelity = 0;
  uint8_t f32_accumulate = 0;
  uint8_t blocks = 0;
  uint8_t unused[3] = {};
  int32_t axis = 0;
  float scalar = 0;
  uint32_t first_output = 0;  // outputs are numbered from here
  uint32_t inputs = 0, released = 0;
  int64_t begin[4] = {}, dims[4] = {};
  int64_t heads = 0, kv_heads = 0;
  int64_t grid_x = 0, grid_y = 0, k_block = 0, subblock_m = 0, subblock_n = 0, core_m = 0,
          core_n = 0;
  int64_t q_chunk = 0, k_chunk = 0;
};
static_assert(sizeof(WireRequest) == 184);

struct WireReply {  // REPLY in worker.py
  uint8_t status = 0, outputs = 0;
  uint16_t unused = 0;
  uint32_t text_bytes = 0;
  int64_t library_ns = 0;  // inside the library
};
static_assert(sizeof(WireReply) == 16);

struct WireOutput {  // OUTPUT in worker.py
  uint32_t id = 0;
  uint8_t format = 0, layout = 0, memory = 0, unused = 0;
  int64_t dims[4] = {};
};
static_assert(sizeof(WireOutput) == 40);

}  // namespace tendon::tt
