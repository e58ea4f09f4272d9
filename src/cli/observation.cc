#include "cli/observation.h"

#include "cli/chunk_files.h"
#include "tendon/embedded.h"
#include "tensor/check.h"

namespace tendon::cli {

void add_observation_options(CLI::App& verb, GivenObservation& given) {
  verb.add_option("--image", given.images, "NAME=FILE (PNG, JPEG or PPM); once per camera");
  verb.add_option("--prompt", given.prompt, "what the robot shall do");
  verb.add_option("--state", given.state, "numbers, or a .json, .npy or text file");
}

Observation observe(const std::string& model, const GivenObservation& given, const Engine& engine,
                    bool fill) {
  const std::optional<Observation> own = observation_for(model, engine, fill);
  Observation observation;
  if (own && given.images.empty()) observation = *own;
  for (const std::string& text : given.images) {
    const size_t equals = text.find('=');
    ensure(equals != std::string::npos && equals > 0, Fault::usage,
           "--image {}: expected NAME=FILE", text);
    observation.images[text.substr(0, equals)] = read_image(text.substr(equals + 1));
  }
  if (!given.state.empty()) observation.state = read_numbers(given.state, "--state");
  if (own && given.state.empty()) observation.state = own->state;
  if (given.prompt) observation.prompt = given.prompt;
  if (fill && !observation.prompt) observation.prompt = own->prompt;
  return observation;
}

}  // namespace tendon::cli
