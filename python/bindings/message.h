// From a Python dictionary to the message that a client would have sent.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <deque>
#include <string_view>
#include <vector>

#include "client/msgpack.h"

namespace tendon::python {

// Bytes of NumPy arrays and of tensors on the CPU are viewed where they lie, if their rows are
// contiguous; everything that is viewed is kept alive. Made and destroyed with the GIL, read
// without.
class Message {
 public:
  // `additions` are keys that replace those of `observation`, or of each row of {"batch": [...]}.
  // A batch of one, as lerobot's processors make it (pictures of four axes), loses its first axis.
  // Throws Error(Fault::input) for what no message can hold.
  Message(const nanobind::dict& observation, const nanobind::dict& additions);
  ~Message();
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  const msgpack::Value& map() const { return map_; }

 private:
  msgpack::Value value(nanobind::handle object, std::string_view key, int depth);
  msgpack::Value whole(nanobind::handle object, std::string_view key);
  msgpack::Value map(const nanobind::dict& dict, std::string_view key, int depth);
  msgpack::Value array(nanobind::handle object, std::string_view key);
  msgpack::Value tensor(nanobind::handle object, std::string_view key);
  std::string_view text(nanobind::handle object);

  msgpack::Value map_;
  std::vector<nanobind::object> kept_;
  std::vector<nanobind::ndarray<nanobind::ro>> tensors_;
  std::deque<Py_buffer> buffers_;
  std::deque<std::vector<uint8_t>> copies_;
};

}  // namespace tendon::python
