// A file of torch.save, and its pickle alone.
#include "../target.h"
#include "checkpoint/pickle.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = fuzz::copy_of(data, size);
  const auto read = [&](std::span<const std::byte> pickle) {
    fuzz::require(!read_pickle(pickle, "fuzz.pt").dump().empty());
  };
  fuzz::taken({Fault::checkpoint}, [&] { read(find_pickle(*bytes, "fuzz.pt")); });
  fuzz::taken({Fault::checkpoint}, [&] { read(*bytes); });
  return 0;
}
