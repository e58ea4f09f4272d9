#include "backends/cpu/packed_weight.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "tensor/bf16.h"
#include "tensor/check.h"

namespace tendon::cpu {
namespace {

// Row of the stacked matrices that column `i` of panel `p` holds; beyond `outputs`: none.
int64_t source_row(const PackedWeight& w, int64_t p, int64_t i) {
  if (!w.gated) return p * kPanel + i;
  const int64_t half = kPanel / 2, at = p * half + i % half;
  if (at >= w.outputs / 2) return w.outputs;
  return i < half ? at : w.outputs / 2 + at;
}

struct Column {
  float scale = 1.f;
  int32_t sum = 0;
};

Column quantise(std::span<const float> row, std::span<uint8_t> to) {
  uint32_t most = 0;  // as bits, which have the order of the magnitudes
  for (const float v : row) most = std::max(most, std::bit_cast<uint32_t>(v) & 0x7FFFFFFFu);
  const auto largest = std::bit_cast<float>(most);
  const float inverse = largest > 0 ? 127.f / largest : 0.f;
  Column column{.scale = largest / 127.f};
  for (size_t i = 0; i < row.size(); ++i) {
    // Narrow, so that values that are no numbers cannot overflow the sum.
    const auto q = static_cast<int8_t>(std::bit_cast<int32_t>(row[i] * inverse + kRoundingSum));
    column.sum += q;
    to[i] = static_cast<uint8_t>(q);
  }
  return column;
}

// One row of the matrix as words, whose last one may be filled up. Loops that compilers vectorise.
Column to_words(Form form, std::span<const float> row, std::span<uint32_t> words) {
  words.back() = 0;
  const std::span<std::byte> bytes = std::as_writable_bytes(words);
  if (form == Form::f32) std::ranges::copy(std::as_bytes(row), bytes.begin());
  if (form == Form::bf16) {
    auto* halves = reinterpret_cast<uint16_t*>(bytes.data());
    for (size_t i = 0; i < row.size(); ++i) halves[i] = to_bf16(row[i]);
  }
  if (form != Form::int8) return {};
  return quantise(row, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
}

// Room for one panel, one per thread: a body that runs on the pool may not run out of memory.
struct PanelRoom {
  explicit PanelRoom(const PackedWeight& w)
      : row(static_cast<size_t>(w.inputs)), words(static_cast<size_t>(kHalf * w.words)) {}
  std::vector<float> row;
  std::vector<uint32_t> words;
};

void pack_panel(const WeightParts& parts, PackedWeight& w, int64_t p, uint32_t* to,
                PanelRoom& room) {
  auto& [row, words] = room;
  const int64_t half = kHalf;
  for (int64_t side = 0; side < 2; ++side) {
    std::ranges::fill(words, 0u);
    for (int64_t i = 0; i < half; ++i) {
      const int64_t r = source_row(w, p, side * half + i);
      if (r >= w.outputs) continue;
      parts.read_row(r, row);
      const Column column = to_words(
          w.form, row,
          std::span(words).subspan(static_cast<size_t>(i * w.words), static_cast<size_t>(w.words)));
      if (w.form != Form::int8) continue;
      w.column_scale[static_cast<size_t>(p * kPanel + side * half + i)] = column.scale;
      w.column_sum[static_cast<size_t>(p * kPanel + side * half + i)] = column.sum;
    }
    uint32_t* out = to + side * half * w.words;
    constexpr int64_t kBlock = 64;  // transposed block by block, so that both sides stay cached
    for (int64_t first = 0; first < w.words; first += kBlock)
      for (int64_t i = 0; i < half; ++i)
        for (int64_t k = first; k < std::min(first + kBlock, w.words); ++k)
          out[k * half + i] = words[static_cast<size_t>(i * w.words + k)];
  }
}

// The shape that everything else follows from.
void lay_out(PackedWeight& w, const WeightParts& parts, Form form) {
  w.gated = parts.kind == WeightKind::gated;
  w.form = parts.kind == WeightKind::small ? Form::f32 : form;
  w.words = words_of(w.form, w.inputs);
  const int64_t per_panel = w.gated ? kPanel / 2 : kPanel;
  const int64_t columns = w.gated ? w.outputs / 2 : w.outputs;
  w.panels = (columns + per_panel - 1) / per_panel;
  if (w.form != Form::int8) return;
  w.column_scale.resize(static_cast<size_t>(w.panels * kPanel));
  w.column_sum.resize(w.column_scale.size());
}

const HostTensor& piece(const WeightParts& parts, const char* name, DType dtype,
                        const Shape& shape) {
  const auto found = std::ranges::find(parts.packed, name, &HostTensor::name);
  ensure(found != parts.packed.end(), Fault::checkpoint, "{} is packed without its '{}'",
         parts.name, name);
  ensure(found->dtype == dtype && found->shape == shape, Fault::checkpoint,
         "{}: packed '{}' is {} {}, expected {} {}", parts.name, name, tendon::name(found->dtype),
         to_string(found->shape), tendon::name(dtype), to_string(shape));
  return *found;
}

// Pieces stay where they are: in a mapped file, as a rule.
void adopt(PackedWeight& w, const WeightParts& parts) {
  w.stored = piece(parts, "data", DType::i32, {w.panels, 2, w.words, kPanel / 2});
  w.data = {w.stored.owner, reinterpret_cast<const uint32_t*>(w.stored.bytes.data())};
  if (w.form != Form::int8) return;
  convert_to_f32(piece(parts, "scale", DType::f32, {w.panels * kPanel}), w.column_scale);
  std::memcpy(w.column_sum.data(),
              piece(parts, "sum", DType::i32, {w.panels * kPanel}).bytes.data(),
              w.column_sum.size() * sizeof(int32_t));
}

std::shared_ptr<uint32_t> make_words(int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(uint32_t);
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ensure(at != MAP_FAILED, Fault::memory, "out of memory: {} bytes for weights", bytes);
  ::madvise(at, bytes, MADV_HUGEPAGE);
  return {static_cast<uint32_t*>(at), [bytes](uint32_t* p) { ::munmap(p, bytes); }};
}

}  // namespace

std::vector<HostTensor> PackedWeight::pieces() const {
  std::vector<HostTensor> all = {stored};
  if (form != Form::int8) return all;
  const Shape shape{panels * kPanel};
  all.push_back(host_tensor("scale", shape, column_scale));
  auto sums = std::make_shared<const std::vector<int32_t>>(column_sum);
  all.push_back({"sum", DType::i32, shape, std::as_bytes(std::span(*sums)), sums});
  return all;
}

std::shared_ptr<const PackedWeight> pack_weight(const WeightParts& parts, Form form,
                                                ThreadPool& pool) {
  auto w = std::make_shared<PackedWeight>();
  w->bias = parts.bias;
  w->outputs = parts.outputs;
  w->inputs = parts.inputs;
  if (parts.kind == WeightKind::table && parts.packed.empty()) {
    w->table = parts.matrices[0];
    return w;
  }
  lay_out(*w, parts, form);
  if (!parts.packed.empty()) {
    adopt(*w, parts);
    return w;
  }
  const std::shared_ptr<uint32_t> data = make_words(w->panels * kPanel * w->words);
  std::vector<PanelRoom> rooms(static_cast<size_t>(pool.threads()), PanelRoom(*w));
  pool.run(w->panels, w->outputs * w->inputs / ThreadPool::kValuesPerNs,
           [&](int64_t p, int thread) {
             pack_panel(parts, *w, p, data.get() + p * kPanel * w->words,
                        rooms[static_cast<size_t>(thread)]);
           });
  // Packed once, never read again: a plain checkpoint shall not stay in memory beside its panels.
  for (const HostTensor& m : parts.matrices) forget_pages(m);
  w->data = data;
  const std::span<const uint32_t> words(data.get(),
                                        static_cast<size_t>(w->panels * kPanel * w->words));
  w->stored = {
      "data", DType::i32, {w->panels, 2, w->words, kPanel / 2}, std::as_bytes(words), data};
  return w;
}

}  // namespace tendon::cpu
