// A safetensors file, as every checkpoint begins.
#include "checkpoint/safetensors.h"

#include <set>

#include "../target.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = fuzz::copy_of(data, size);
  fuzz::taken({Fault::checkpoint}, [&] {
    const auto file = SafetensorsFile::from_bytes(bytes, *bytes, "fuzz.safetensors");
    std::set<std::string> names;
    size_t covered = 0;
    for (const HostTensor& t : file->tensors()) {
      fuzz::require(names.insert(t.name).second && file->find(t.name) == &t);
      fuzz::require(t.shape.count() >= 1 && t.bytes.data() >= bytes->data());
      fuzz::require(t.bytes.data() + t.bytes.size() <= bytes->data() + size);
      covered += t.bytes.size();
    }
    fuzz::require(covered <= size);
  });
  return 0;
}
