#include "backends/ttnn/fake_rules.h"

#include <algorithm>
#include <initializer_list>

#include "backends/ttnn/tiles.h"
#include "tensor/check.h"
#include "tensor/tensor.h"

namespace tendon::tt {
namespace {

int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }
std::string text(const Dims& dims) { return to_string(Shape(dims)); }

// One call under examination: its inputs by position, and the sentences of a refusal.
struct Inspection {
  const Request& request;
  std::span<const std::optional<Spec>> inputs;
  const CoreGrid& grid;

  template <class... Args>
  void expect(bool ok, fmt::format_string<Args...> text, Args&&... args) const {
    if (!ok)
      fail(Fault::backend, "[{}] {}", name(request.call),
           fmt::format(text, std::forward<Args>(args)...));
  }

  void input_count(size_t least, size_t most) const {
    expect(inputs.size() >= least && inputs.size() <= most, "got {} inputs, expected {} to {}",
           inputs.size(), least, most);
  }
  bool has(size_t i) const { return i < inputs.size() && inputs[i].has_value(); }
  const Spec& at(size_t i, std::string_view what) const {
    expect(has(i), "got no {} (input {} is 0), expected a tensor", what, i);
    return *inputs[i];
  }

  // Input i on tiles in one of `formats`.
  const Spec& tiled(size_t i, std::string_view what, std::initializer_list<Format> formats) const {
    const Spec& x = at(i, what);
    expect(x.layout == Layout::tile, "{} is {}, expected tile layout", what, to_string(x));
    format_among(x, what, formats);
    return x;
  }
  void format_among(const Spec& x, std::string_view what,
                    std::initializer_list<Format> formats) const {
    std::string names;
    for (const Format f : formats)
      names += fmt::format("{}{}", names.empty() ? "" : " or ", name(f));
    expect(std::ranges::find(formats, x.format) != formats.end(), "{} is {}, expected {}", what,
           to_string(x), names);
  }
  void dims(const Spec& x, std::string_view what, const Dims& expected) const {
    expect(x.dims == expected, "{} is {}, expected {}", what, to_string(x), text(expected));
  }
  void head_size(int64_t d, int64_t multiple) const {
    expect(d > 0 && d % multiple == 0, "got a head of {} columns, expected a multiple of {}", d,
           multiple);
  }
  void l1(int64_t bytes, std::string_view what) const {
    expect(kL1Base + bytes <= grid.l1_bytes, "{} need {} bytes of L1 per core, expected at most {}",
           what, kL1Base + bytes, grid.l1_bytes);
  }

  // An output like x in another shape, where the request says; formats are x's own.
  Spec like(const Spec& x, const Dims& dims) const {
    return {dims, x.format, x.layout, request.memory};
  }
  // The same for calls with a choice of format.
  Spec chosen(const Spec& x, const Dims& dims) const {
    expect(request.format != Format::u32, "got output format u32, expected bf16 or bfp8");
    return {dims, request.format, x.layout, request.memory};
  }
};

constexpr std::initializer_list<Format> kReal = {Format::bf16, Format::bfp8};
constexpr std::initializer_list<Format> kExact = {Format::bf16};

// ---- Calls that move values ----

// Where whole tiles cannot be copied the library goes through rows, which have no bfp8, and does
// not come back to it.
Spec through_rows(Spec y, bool tiles_move_whole) {
  if (!tiles_move_whole && y.format == Format::bfp8) y.format = Format::bf16;
  return y;
}

Spec reshape(const Inspection& in) {
  const Spec& x = in.at(0, "x");
  const Dims &from = x.dims, &to = in.request.dims;
  in.expect(count(from) == count(to), "x is {}, expected as many values as {}", to_string(x),
            text(to));
  return in.like(x, to);
}

Spec slice(const Inspection& in) {
  const Spec& x = in.at(0, "x");
  Dims dims{};
  for (size_t i = 0; i < dims.size(); ++i) {
    dims[i] = in.request.dims[i] - in.request.begin[i];
    in.expect(in.request.begin[i] >= 0 && dims[i] > 0 && in.request.dims[i] <= x.dims[i],
              "got [{}, {}) of axis {}, expected a part of {}", in.request.begin[i],
              in.request.dims[i], i, to_string(x));
  }
  const bool whole = in.request.begin[2] % kTile == 0 && in.request.begin[3] % kTile == 0;
  return through_rows(in.like(x, dims), whole);
}

Spec pad(const Inspection& in) {
  const Spec& x = in.at(0, "x");
  for (size_t i = 0; i < x.dims.size(); ++i)
    in.expect(in.request.dims[i] >= x.dims[i], "got {}, expected at least x, {}",
              text(in.request.dims), to_string(x));
  return in.like(x, in.request.dims);
}

Spec concat(const Inspection& in) {
  const Spec& x = in.at(0, "input 0");
  const int axis = in.request.axis;
  in.expect(axis >= 0 && axis < 4, "got axis {}, expected 0 to 3", axis);
  const auto along = static_cast<size_t>(axis);
  Dims dims = x.dims;
  bool whole = axis < 2 || x.dims[along] % kTile == 0;
  for (size_t i = 1; i < in.inputs.size(); ++i) {
    const Spec& y = in.at(i, "input");
    Dims aligned = y.dims;
    aligned[along] = x.dims[along];
    in.expect(aligned == x.dims && y.format == x.format && y.layout == x.layout,
              "input {} is {}, expected the like of {} but for axis {}", i, to_string(y),
              to_string(x), axis);
    dims[along] += y.dims[along];
    whole &= axis < 2 || y.dims[along] % kTile == 0;
  }
  return through_rows(in.like(x, dims), whole);
}

Spec typecast(const Inspection& in) {
  const Spec& x = in.at(0, "x");
  in.format_among(x, "x", kReal);
  return in.chosen(x, x.dims);
}

// ---- linear ----

// Buffers of a core: two blocks of each operand (one when k is not cut), a row of bias, the output,
// and the partial sums where they have another format.
int64_t linear_l1(const Inspection& in, const Spec& x, const Spec& w) {
  const Blocks& b = in.request.blocks;
  const Compute& c = in.request.compute;
  const Format y = in.request.format;
  const int64_t operands =
      b.core_m * b.k_block * tile_bytes(x.format) + b.k_block * b.core_n * tile_bytes(w.format);
  return (b.k_block < tiles(x.dims[3]) ? 2 : 1) * operands +
         (in.has(2) ? b.core_n * tile_bytes(in.inputs[2]->format) : 0) +
         b.core_m * b.core_n * (tile_bytes(y) + (c.f32_accumulate ? kF32TileBytes : 0));
}

void check_blocks(const Inspection& in, const Spec& x, const Spec& w) {
  const Blocks& b = in.request.blocks;
  const int64_t m = x.dims[0] * x.dims[1] * tiles(x.dims[2]), k = tiles(x.dims[3]);
  const int64_t n = tiles(w.dims[3]);
  in.expect(b.grid_x >= 1 && b.grid_y >= 1 && b.grid_x <= in.grid.x && b.grid_y <= in.grid.y,
            "blocks are planned for a grid of {}x{}, but the device's grid is {}x{}", b.grid_x,
            b.grid_y, in.grid.x, in.grid.y);
  in.expect(std::min({b.k_block, b.subblock_m, b.subblock_n, b.core_m, b.core_n}) >= 1,
            "got a block of 0 tiles, expected at least 1");
  in.expect(k % b.k_block == 0, "got k_block {}, expected a divisor of k, {} tiles", b.k_block, k);
  const int64_t registers = in.request.compute.f32_accumulate ? 4 : 8;
  in.expect(b.subblock_m * b.subblock_n <= registers,
            "got a subblock of {}x{} tiles, expected at most {}", b.subblock_m, b.subblock_n,
            registers);
  in.expect(b.core_m % b.subblock_m == 0 && b.core_n % b.subblock_n == 0,
            "got a subblock of {}x{} tiles, expected divisors of the core's {}x{}", b.subblock_m,
            b.subblock_n, b.core_m, b.core_n);
  const int64_t down = pieces(m, b.core_m), across = pieces(n, b.core_n);
  if (b.kind == Blocks::Kind::multicast_2d)
    in.expect(down <= b.grid_y && across <= b.grid_x,
              "{}x{} tiles in blocks of {}x{} are {} down and {} across, expected at most a grid "
              "of {}x{}",
              m, n, b.core_m, b.core_n, down, across, b.grid_x, b.grid_y);
  else
    in.expect(down == 1 && across <= b.grid_x * b.grid_y,
              "{}x{} tiles in blocks of {}x{} are {} down and {} across, expected 1 down and at "
              "most {} across",
              m, n, b.core_m, b.core_n, down, across, b.grid_x * b.grid_y);
  in.l1(linear_l1(in, x, w), "blocks");
}

Spec linear(const Inspection& in) {
  in.input_count(3, 3);
  const Spec &x = in.tiled(0, "x", kReal), &w = in.tiled(1, "w", kReal);
  in.expect(w.dims[0] == 1 && w.dims[1] == 1 && w.dims[2] == x.dims[3],
            "x is {} and w is {}, expected w [1, 1, {}, n]", to_string(x), to_string(w), x.dims[3]);
  if (in.has(2)) in.dims(in.tiled(2, "bias", kReal), "bias", {1, 1, 1, w.dims[3]});
  const Spec y = in.chosen(x, {x.dims[0], x.dims[1], x.dims[2], w.dims[3]});
  if (in.request.blocks.kind != Blocks::Kind::library) check_blocks(in, x, w);
  return y;
}

// ---- Norms, attention, heads ----

Spec norm(const Inspection& in) {
  const bool centered = in.request.call == Call::layer_norm;
  in.input_count(centered ? 3 : 2, centered ? 3 : 2);
  const Spec& x = in.tiled(0, "x", kExact);
  const Dims row = {1, 1, 1, x.dims[3]};
  if (in.has(1)) in.dims(in.tiled(1, "scale", kExact), "scale", row);
  if (in.has(2)) in.dims(in.tiled(2, "shift", kExact), "shift", row);
  in.expect(in.request.scalar > 0, "got epsilon {}, expected more than 0", in.request.scalar);
  return in.like(x, x.dims);
}

// Buffers of a core: q (two when it has several chunks), two of k, v and mask, the scores, two of
// the running output, statistics per row of q, and the output: four rows of tiles at a time, but
// all of it under f32 accumulation.
int64_t attention_l1(const Inspection& in, const Spec& query) {
  const auto [batches, heads, m, columns] = query.dims;
  const bool wide = in.request.compute.f32_accumulate;
  const int64_t q = tiles(in.request.chunks.q), k = tiles(in.request.chunks.k), d = tiles(columns);
  const int64_t each = tile_bytes(query.format), half = tile_bytes(Format::bf16);
  const int64_t tasks = batches * heads * pieces(m, in.request.chunks.q);
  const int64_t operands = (tasks > in.grid.x * in.grid.y ? 2 : 1) * q * d + 4 * k * d;
  const int64_t scores = q * k * (wide ? kF32TileBytes : half);
  const int64_t masks = in.has(3) ? 2 * q * k * half : 0;
  const int64_t statistics = wide ? 7 * q + 2 : 5 * q + 3;
  return (operands + (wide ? q * d : 4 * d)) * each + scores + masks +
         (2 * q * d + statistics) * half;
}

Spec attention(const Inspection& in) {
  in.input_count(4, 4);
  const Spec &q = in.tiled(0, "q", kReal), &k = in.tiled(1, "k", kReal);
  const Spec& v = in.tiled(2, "v", kReal);
  const auto [batches, heads, m, d] = q.dims;
  in.head_size(d, kTile);
  in.dims(k, "k", {batches, k.dims[1], k.dims[2], d});
  in.dims(v, "v", k.dims);
  in.expect(heads % k.dims[1] == 0, "got {} heads of q and {} of k, expected a multiple", heads,
            k.dims[1]);
  if (in.has(3)) {
    const Spec& mask = in.tiled(3, "mask", {Format::bf16});
    in.dims(mask, "mask", {mask.dims[0] == batches ? batches : 1, 1, m, k.dims[2]});
    in.expect(m % kTile == 0 && k.dims[2] % kTile == 0,
              "got a mask for {}x{}, expected multiples of 32 (pad q, k, v and mask)", m,
              k.dims[2]);
  }
  const Chunks& c = in.request.chunks;
  in.expect(c.q > 0 && c.k > 0 && c.q % kTile == 0 && c.k % kTile == 0,
            "got chunks {} and {}, expected multiples of 32", c.q, c.k);
  in.l1(attention_l1(in, q), "chunks");
  return in.like(q, q.dims);
}

Spec rotary(const Inspection& in) {
  in.input_count(3, 3);
  const Spec& x = in.tiled(0, "x", kReal);
  in.expect(x.dims[3] == kTile || x.dims[3] % (2 * kTile) == 0,
            "got a head of {} columns, expected 32 or a multiple of 64", x.dims[3]);
  in.dims(x, "x", {1, x.dims[1], x.dims[2], x.dims[3]});
  for (const size_t i : {size_t{1}, size_t{2}})
    in.dims(in.tiled(i, i == 1 ? "cos" : "sin", {Format::bf16}), i == 1 ? "cos" : "sin",
            {1, 1, x.dims[2], x.dims[3]});
  // The library forgets how many rows of the last tile were there.
  return in.like(x, {1, x.dims[1], padded(x)[2], x.dims[3]});
}

std::vector<Spec> create_qkv_heads(const Inspection& in) {
  in.input_count(1, 1);
  const Spec& x = in.tiled(0, "x", kReal);
  const int64_t heads = in.request.heads, kv = in.request.kv_heads;
  in.expect(heads > 0 && kv > 0 && heads % kv == 0,
            "got {} heads and {} kv heads, expected a multiple", heads, kv);
  in.expect(x.dims[1] == 1 && x.dims[3] % (heads + 2 * kv) == 0,
            "x is {}, expected [b, 1, m, {} heads of d columns]", to_string(x), heads + 2 * kv);
  const int64_t d = x.dims[3] / (heads + 2 * kv);
  in.head_size(d, kTile);
  const Spec q = in.like(x, {x.dims[0], heads, x.dims[2], d});
  const Spec k = in.like(x, {x.dims[0], kv, x.dims[2], d});
  return {q, k, k};
}

Spec concat_heads(const Inspection& in) {
  const Spec& x = in.tiled(0, "x", kReal);
  in.head_size(x.dims[3], kTile);
  return in.like(x, {x.dims[0], 1, x.dims[2], x.dims[1] * x.dims[3]});
}

Spec embedding(const Inspection& in) {
  in.input_count(2, 2);
  const Spec &ids = in.at(0, "ids"), &table = in.at(1, "table");
  in.expect(ids.layout == Layout::row_major, "ids are {}, expected row_major", to_string(ids));
  in.expect(table.layout == Layout::row_major, "table is {}, expected row_major", to_string(table));
  in.format_among(ids, "ids", {Format::u32});
  in.format_among(table, "table", {Format::bf16});
  in.dims(ids, "ids", {1, 1, 1, ids.dims[3]});
  in.dims(table, "table", {1, 1, table.dims[2], table.dims[3]});
  return {{1, 1, ids.dims[3], table.dims[3]}, table.format, Layout::tile, in.request.memory};
}

// ---- Value by value ----

Spec binary(const Inspection& in) {
  in.input_count(2, 2);
  const Spec &x = in.tiled(0, "x", kReal), &y = in.tiled(1, "y", kReal);
  for (size_t i = 0; i < x.dims.size(); ++i)
    in.expect(y.dims[i] == x.dims[i] || y.dims[i] == 1, "y is {}, expected axis {} of x {} or 1",
              to_string(y), i, to_string(x));
  return in.chosen(x, x.dims);
}

Spec multiply_scalar(const Inspection& in) {
  const Spec& x = in.tiled(0, "x", kReal);
  return in.chosen(x, x.dims);
}

Spec output_spec(const Inspection& in) {
  switch (in.request.call) {
    case Call::concat: return concat(in);
    case Call::linear: return linear(in);
    case Call::layer_norm:
    case Call::rms_norm: return norm(in);
    case Call::attention: return attention(in);
    case Call::rotary: return rotary(in);
    case Call::embedding: return embedding(in);
    case Call::add:
    case Call::multiply: return binary(in);
    default: break;
  }
  in.input_count(1, 1);
  switch (in.request.call) {
    case Call::reshape: return reshape(in);
    case Call::slice: return slice(in);
    case Call::pad: return pad(in);
    case Call::typecast: return typecast(in);
    case Call::concat_heads: return concat_heads(in);
    default: return multiply_scalar(in);
  }
}

}  // namespace

std::vector<Spec> output_specs(const Request& request, std::span<const std::optional<Spec>> inputs,
                               const CoreGrid& grid) {
  const Inspection in{request, inputs, grid};
  in.expect(!inputs.empty(), "got no inputs, expected at least 1");
  std::vector<Spec> outputs = request.call == Call::create_qkv_heads
                                  ? create_qkv_heads(in)
                                  : std::vector<Spec>{output_spec(in)};
  for (const Spec& y : outputs) check_spec(y);
  return outputs;
}

bool is_view(const Request& request, const Spec& x, const Spec& y) {
  if (request.call != Call::reshape || x.memory != y.memory || x.dims[3] != y.dims[3]) return false;
  const bool whole = x.dims[2] % kTile == 0 && y.dims[2] % kTile == 0;
  return x.layout == Layout::row_major || x.dims[2] == y.dims[2] || whole;
}

int64_t bytes_per_core(const Spec& spec, int64_t cores) {
  const bool tiled = spec.layout == Layout::tile;
  const Dims& d = spec.dims;
  const int64_t page = tiled ? tile_bytes(spec.format) : byte_size(spec) / (d[0] * d[1] * d[2]);
  return pieces(byte_size(spec) / page, cores) * page;
}

void check_spec(const Spec& spec) {
  ensure(std::ranges::min(spec.dims) >= 1, Fault::backend, "got {}, expected axes of at least 1",
         to_string(spec));
  ensure(spec.layout == Layout::tile || spec.format != Format::bfp8, Fault::backend,
         "got {}, expected tile layout: bfp8 has no other", to_string(spec));
  ensure(spec.layout == Layout::row_major || spec.format != Format::u32, Fault::backend,
         "got {}, expected row_major for u32", to_string(spec));
}

}  // namespace tendon::tt
