#include <algorithm>

#include "backends/ttnn/fake_device.h"
#include "backends/ttnn/plan.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {

std::string text(const Dims& dims) { return to_string(Shape(dims)); }

// One call under examination, and the sentences of a refusal.
struct Inspection {
  const Request& request;
  InputSpecs inputs;
  const Caps& room;

  template <class... Args>
  void expect(bool ok, fmt::format_string<Args...> text, Args&&... args) const {
    if (!ok)
      fail(Fault::internal, "[{}] {}", name(request.call),
           fmt::format(text, std::forward<Args>(args)...));
  }
  const Spec& at(size_t i) const { return *inputs[i]; }
  void dims(size_t i, const Dims& expected) const {
    expect(at(i).dims == expected, "{} is {}, expected {}", info(request.call).inputs[i].name,
           to_string(at(i)), text(expected));
  }
  void head_size(int64_t d) const {
    expect(d > 0 && d % kTile == 0, "got a head of {} columns, expected a multiple of {}", d,
           kTile);
  }
  void fits_l1(std::string_view what) const {
    const int64_t bytes = kL1Base + l1_bytes(request, inputs, room.grid_x * room.grid_y);
    expect(bytes <= room.l1_bytes, "{} need {} bytes of L1 per core, expected at most {}", what,
           bytes, room.l1_bytes);
  }

  // f32 and u8, where a call takes them.
  bool is_other(Format format) const {
    switch (request.call) {
      case Call::typecast: return format == Format::f32 || format == Format::u8;
      case Call::concat:
      case Call::multiply:
      case Call::sin:
      case Call::cos:
      case Call::copy: return format == Format::f32;
      default: return false;
    }
  }

  void operands() const {
    std::vector<CallInfo::Input> expected = info(request.call).inputs;
    if (request.call == Call::concat) expected.resize(inputs.size(), expected[0]);
    expect(!inputs.empty() && inputs.size() == expected.size(), "got {} inputs, expected {}",
           inputs.size(), std::max<size_t>(expected.size(), 1));
    const bool rows = request.call == Call::embedding;
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto& [name, may_be_bfp8, may_be_absent] = expected[i];
      expect(inputs[i] || may_be_absent, "got no {} (input {} is 0), expected a tensor", name, i);
      if (!inputs[i]) continue;
      const Spec& x = at(i);
      expect((x.layout == Layout::row_major) == rows, "{} is {}, expected {}", name, to_string(x),
             rows ? "row_major" : "tile layout");
      if (is_other(x.format)) continue;
      const Format format = rows && i == 0 ? Format::u32 : Format::bf16;
      expect(x.format == format || (may_be_bfp8 && x.format == Format::bfp8),
             "{} is {}, expected {}", name, to_string(x),
             may_be_bfp8 ? "bf16 or bfp8" : tt::name(format));
    }
  }

  void slice() const {
    const Spec& x = at(0);
    for (size_t i = 0; i < x.dims.size(); ++i)
      expect(request.begin[i] >= 0 && request.begin[i] < request.dims[i] &&
                 request.dims[i] <= x.dims[i],
             "got [{}, {}) of axis {}, expected a part of {}", request.begin[i], request.dims[i], i,
             to_string(x));
  }

  void pad() const {
    for (size_t i = 0; i < request.dims.size(); ++i)
      expect(request.dims[i] >= at(0).dims[i], "got {}, expected at least x, {}",
             text(request.dims), to_string(at(0)));
  }

  void concat() const {
    const Spec& x = at(0);
    expect(request.axis >= 0 && request.axis < 4, "got axis {}, expected 0 to 3", request.axis);
    const auto axis = static_cast<size_t>(request.axis);
    for (size_t i = 1; i < inputs.size(); ++i) {
      Spec y = at(i);
      y.dims[axis] = x.dims[axis];
      y.memory = x.memory;
      expect(y == x, "input {} is {}, expected the like of {} but for axis {}", i, to_string(at(i)),
             to_string(x), request.axis);
    }
  }

  void linear() const {
    const Spec &x = at(0), &w = at(1);
    expect(w.dims[0] == 1 && w.dims[1] == 1 && w.dims[2] == x.dims[3],
           "x is {} and w is {}, expected w [1, 1, {}, n]", to_string(x), to_string(w), x.dims[3]);
    if (inputs[2]) dims(2, {1, 1, 1, w.dims[3]});
    if (request.blocks.kind != Blocks::Kind::library) blocks();
  }

  void blocks() const {
    const Blocks& b = request.blocks;
    const Dims& x = at(0).dims;
    const int64_t m = x[0] * x[1] * tiles(x[2]), k = tiles(x[3]), n = tiles(at(1).dims[3]);
    expect(b.grid_x >= 1 && b.grid_y >= 1 && b.grid_x <= room.grid_x && b.grid_y <= room.grid_y,
           "blocks are planned for a grid of {}x{}, but the device's grid is {}x{}", b.grid_x,
           b.grid_y, room.grid_x, room.grid_y);
    expect(std::min({b.k_block, b.subblock_m, b.subblock_n, b.core_m, b.core_n}) >= 1,
           "got a block of 0 tiles, expected at least 1");
    expect(k % b.k_block == 0, "got k_block {}, expected a divisor of k, {} tiles", b.k_block, k);
    const int64_t registers = request.compute.f32_accumulate ? 4 : 8;
    expect(b.subblock_m * b.subblock_n <= registers,
           "got a subblock of {}x{} tiles, expected at most {}", b.subblock_m, b.subblock_n,
           registers);
    expect(b.core_m % b.subblock_m == 0 && b.core_n % b.subblock_n == 0,
           "got a subblock of {}x{} tiles, expected divisors of the core's {}x{}", b.subblock_m,
           b.subblock_n, b.core_m, b.core_n);
    const bool one_way = b.kind == Blocks::Kind::multicast_1d;
    const int64_t down = divide_up(m, b.core_m), across = divide_up(n, b.core_n);
    const int64_t down_max = one_way ? 1 : b.grid_y;
    const int64_t across_max = one_way ? b.grid_x * b.grid_y : b.grid_x;
    expect(down <= down_max && across <= across_max,
           "{}x{} tiles in blocks of {}x{} are {} down and {} across, expected at most {} and {}",
           m, n, b.core_m, b.core_n, down, across, down_max, across_max);
    fits_l1("blocks");
  }

  void attention() const {
    const auto [batches, heads, m, d] = at(0).dims;
    const Dims& k = at(1).dims;
    head_size(d);
    dims(1, {batches, k[1], k[2], d});
    dims(2, k);
    expect(heads % k[1] == 0, "got {} heads of q and {} of k, expected a multiple", heads, k[1]);
    if (inputs[3]) {
      dims(3, {1, 1, m, k[2]});
      expect(m % kTile == 0 && k[2] % kTile == 0,
             "got a mask for {}x{}, expected multiples of 32 (pad q, k, v and mask)", m, k[2]);
    }
    const Chunks& c = request.chunks;
    expect(c.q > 0 && c.k > 0 && c.q % kTile == 0 && c.k % kTile == 0,
           "got chunks {} and {}, expected multiples of 32", c.q, c.k);
    fits_l1("chunks");
  }

  void create_qkv_heads() const {
    const Spec& x = at(0);
    const int64_t heads = request.heads, kv = request.kv_heads;
    expect(heads > 0 && kv > 0 && heads % kv == 0,
           "got {} heads and {} kv heads, expected a multiple", heads, kv);
    expect(x.dims[1] == 1 && x.dims[3] % (heads + 2 * kv) == 0,
           "x is {}, expected [b, 1, m, {} heads of d columns]", to_string(x), heads + 2 * kv);
    head_size(x.dims[3] / (heads + 2 * kv));
  }

  void binary() const {
    const Spec &x = at(0), &y = at(1);
    expect((x.format == Format::f32) == (y.format == Format::f32),
           "x is {} and y is {}, expected f32 both or none", to_string(x), to_string(y));
    for (size_t i = 0; i < x.dims.size(); ++i)
      expect(y.dims[i] == x.dims[i] || y.dims[i] == 1, "y is {}, expected axis {} of x {} or 1",
             to_string(y), i, to_string(x));
  }

  void check() const {
    operands();
    expect(request.format == Format::bf16 || request.format == Format::bfp8,
           "got output format {}, expected bf16 or bfp8", name(request.format));
    const Spec& x = at(0);
    const auto [b, h, m, d] = x.dims;
    switch (request.call) {
      case Call::reshape:
        return expect(tt::count(x.dims) == tt::count(request.dims),
                      "x is {}, expected as many values as {}", to_string(x), text(request.dims));
      case Call::slice: return slice();
      case Call::pad: return pad();
      case Call::concat: return concat();
      case Call::linear: return linear();
      case Call::layer_norm:
      case Call::rms_norm:
        for (size_t i = 1; i < inputs.size(); ++i) dims(i, {1, 1, 1, d});
        return expect(request.scalar > 0, "got epsilon {}, expected more than 0", request.scalar);
      case Call::attention: return attention();
      case Call::rotary:
        expect(d == kTile || d % (2 * kTile) == 0,
               "got a head of {} columns, expected 32 or a multiple of 64", d);
        dims(0, {1, h, m, d});
        dims(1, {1, 1, m, d});
        return dims(2, {1, 1, m, d});
      case Call::create_qkv_heads: return create_qkv_heads();
      case Call::concat_heads: return head_size(d);
      case Call::embedding:
        dims(0, {1, 1, 1, d});
        return dims(1, {1, 1, at(1).dims[2], at(1).dims[3]});
      case Call::add:
      case Call::multiply: return binary();
      case Call::sin:
      case Call::cos: return expect(x.format == Format::f32, "x is {}, expected f32", to_string(x));
      case Call::permute:
      case Call::typecast:
      case Call::multiply_scalar:
      case Call::copy: return;
    }
  }
};

}  // namespace

void check_legal(const Request& request, InputSpecs inputs, const Caps& room) {
  Inspection{request, inputs, room}.check();
}

void check_spec(const Spec& spec) {
  ensure(std::ranges::min(spec.dims) >= 1, Fault::internal, "got {}, expected axes of at least 1",
         to_string(spec));
  ensure(spec.layout == Layout::tile || spec.format != Format::bfp8, Fault::internal,
         "got {}, expected tile layout: bfp8 has no other", to_string(spec));
  ensure(spec.layout == Layout::row_major || spec.format != Format::u32, Fault::internal,
         "got {}, expected row_major for u32", to_string(spec));
}

}  // namespace tendon::tt
