// Which instruction set carries a product, by measurement: feature bits do not tell that one
// machine's bf16 instruction runs at half the rate of its f32 one and another's at twice.
#include <time.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "backends/cpu/isa.h"
#include "backends/cpu/linear.h"
#include "tensor/check.h"
#include "tensor/compare.h"
#include "tensor/random.h"

namespace tendon::cpu {
namespace {

// Speeds closer than this are equal: then the order below decides, so that equal machines take the
// same and give the same bytes.
constexpr double kMargin = 0.1;
constexpr std::array<std::string_view, 7> kPreference = {
    "avx512", "avx512vnni", "avx512bf16", "amx", "avx2", "avxvnni", "plain"};

// Processor time of this thread, so that other work on the machine does not count.
double thread_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// A tile against one widened panel after the other, as a product does.
class Probe {
 public:
  Probe(const SimdKernels& isa, Form form)
      : isa_(isa),
        form_(static_cast<size_t>(form)),
        rows_(isa.tile_rows[form_]),
        macs_(static_cast<double>(rows_ * kBlockWords * inputs_per_word(form)) /
              isa.tile_words[form_]) {
    std::fill_n(tile_.get(rows_ * kTileStride), rows_ * kTileStride, 0U);
    std::fill_n(panels_.get(kPanels * kBlockWords), kPanels * kBlockWords, 0U);
    sums_.get(rows_ * kPanel);
  }
  // Of at least so many seconds.
  void run(double seconds) {
    int64_t tiles = 0;
    const double begin = thread_seconds();
    double took = 0;
    do {
      for (int64_t p = 0; p < kPanels; ++p, ++tiles) {
        const uint32_t* panel = panels_.peek() + p * kBlockWords;
        isa_.tiles[form_][rows_](
            {tile_.peek(), panel, kBlockWords / 2, kTileWords, sums_.get(0), false, panel});
      }
      took = thread_seconds() - begin;
    } while (took < seconds);
    best_ = std::max(best_, 2e-9 * macs_ * static_cast<double>(tiles) / took);
  }
  double gflops() const { return best_; }

 private:
  static constexpr int64_t kPanels = 2;
  const SimdKernels& isa_;
  size_t form_;
  int64_t rows_;
  double macs_;
  Scratch<uint32_t> tile_, panels_;
  Scratch<float> sums_;
  double best_ = 0;
};

// A small product with ragged sizes.
std::vector<float> small_product(const SimdKernels& isa, Form form) {
  constexpr int64_t kRows = 45, kInputs = 151, kOutputs = 70;
  static_assert(kRows % 16 != 0 && kOutputs % kPanel != 0);
  std::vector<float> matrix(kOutputs * kInputs), x(kRows * kInputs), y(kRows * kOutputs);
  normal_noise(1, 0, matrix);
  normal_noise(2, 0, x);
  ThreadPool pool(1);
  const auto weight = pack_weight({.name = "probe",
                                   .matrices = {host_tensor("probe", {kOutputs, kInputs}, matrix)},
                                   .outputs = kOutputs,
                                   .inputs = kInputs},
                                  form, pool);
  Products(isa, pool, 1).product(x.data(), kRows, *weight, {.y = y.data(), .columns = kOutputs});
  return y;
}

// The same rounded operands, sums in another order.
bool agree(const std::vector<float>& got, const std::vector<float>& expected) {
  return compare(got, expected).relative_l2 <= 1e-5;
}

std::vector<IsaSpeed> measure(Form form) {
  constexpr int kRounds = 4;
  constexpr double kSeconds = 200e-6;
  std::vector<IsaSpeed> speeds;
  std::vector<Probe> probes;
  const std::vector<float> expected = small_product(*plain_kernels(), form);
  for (const SimdKernels* isa : available_isas()) {
    speeds.push_back({isa, 0, agree(small_product(*isa, form), expected)});
    probes.emplace_back(*isa, form);
  }
  for (int round = 0; round < kRounds; ++round)  // in turns: the clock of the core changes
    for (Probe& probe : probes) probe.run(kSeconds);
  for (size_t i = 0; i < probes.size(); ++i) speeds[i].gflops = probes[i].gflops();
  return speeds;
}

}  // namespace

bool agrees_with_plain(const SimdKernels& isa, Form form) {
  return agree(small_product(isa, form), small_product(*plain_kernels(), form));
}

const std::vector<IsaSpeed>& isa_speeds(Form form) {
  static std::array<std::once_flag, kForms> once;
  static std::array<std::vector<IsaSpeed>, kForms> measured;
  const auto i = static_cast<size_t>(form);
  std::call_once(once[i], [&] { measured[i] = measure(form); });
  return measured[i];
}

const SimdKernels& fastest(const std::vector<IsaSpeed>& speeds) {
  double most = 0;
  for (const IsaSpeed& s : speeds)
    if (s.right) most = std::max(most, s.gflops);
  for (const std::string_view name : kPreference)
    for (const IsaSpeed& s : speeds)
      if (s.right && name == s.isa->name && s.gflops >= (1 - kMargin) * most) return *s.isa;
  fail(Fault::backend, "no instruction set of this machine multiplies as the plain loops do");
}

int64_t macs_per_ns(const SimdKernels& isa, Form form) {
  const std::vector<IsaSpeed>& speeds = isa_speeds(form);
  const auto found = std::ranges::find(speeds, &isa, &IsaSpeed::isa);
  return std::max<int64_t>(1, static_cast<int64_t>(found->gflops / 2));
}

const SimdKernels& isa_for(const std::string& name, Form form) {
  return name.empty() ? fastest(isa_speeds(form)) : isa_named(name);
}

}  // namespace tendon::cpu
