// A PNG, JPEG or PPM file of the command line.
#include "../target.h"
#include "policy/images.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = fuzz::copy_of(data, size);
  fuzz::taken({Fault::input}, [&] {
    const Image image = decode_image(*bytes, "fuzz.image");
    fuzz::require(image.height > 0 && image.width > 0);
    fuzz::require(image.rgb.size() ==
                  3UL * static_cast<size_t>(image.height) * static_cast<size_t>(image.width));
  });
  return 0;
}
