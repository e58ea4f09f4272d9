// A SentencePiece model, and what its tokenizer makes of a prompt.
#include "../target.h"
#include "policy/tokenizer.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = fuzz::copy_of(data, size);
  fuzz::taken({Fault::checkpoint}, [&] {
    const Tokenizer tokenizer = Tokenizer::from_bytes(*bytes, "fuzz.model");
    for (const int32_t id : tokenizer.encode("pick up the red block\n\xC3\xA9 <loc0001>  2 55"))
      fuzz::require(id >= 0 && id < tokenizer.vocabulary());
  });
  return 0;
}
