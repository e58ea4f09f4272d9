// An episode on a terminal, while it happens.
#pragma once

#include <cstdio>
#include <string>

#include "demo/closed_loop.h"

namespace tendon::demo {

// Draws the table in 22 rows of 44 columns, beside it the gripper's view and what the gripper does,
// and one line below, each frame over the one before. Needs 23 rows of 80 columns and UTF-8; what
// does not fit is cut by the terminal. Between two frames the terminal is as it was, so that an
// interrupted program leaves nothing behind.
//
// Without colours every frame follows the one before, in plain ASCII without any escape sequence:
// "Rd" is (a part of) a red disc, "Bs" of a blue square, "Yt" of a yellow triangle; "+" is the
// open gripper, "++" the closed one.
class TerminalView {
 public:
  TerminalView(std::FILE* to, bool colours) : to_(to), colours_(colours) {}
  ~TerminalView();  // puts the cursor below the last frame
  TerminalView(const TerminalView&) = delete;
  TerminalView& operator=(const TerminalView&) = delete;

  // `prompt` and `status` make the last line; control characters in them become spaces. May be
  // LoopOptions::watch. Does not wait: the pace is the caller's.
  void show(const Record& record, const std::string& prompt, const std::string& status);

 private:
  std::FILE* to_;
  bool colours_;
  bool shown_ = false;
};

}  // namespace tendon::demo
