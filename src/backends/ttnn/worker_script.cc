#include "backends/ttnn/worker_script.h"

// NOLINTBEGIN: the assembler puts the files into the read-only section.
#define TENDON_EMBED(symbol, file)                                                    \
  asm(".section .rodata\n.global " #symbol "\n.global " #symbol "_end\n" #symbol      \
      ":\n"                                                                           \
      ".incbin \"" TENDON_TTNN_SCRIPTS "/" file "\"\n" #symbol "_end:\n.previous\n"); \
  extern "C" const char symbol[], symbol##_end[]
// NOLINTEND

TENDON_EMBED(tendon_ttnn_worker, "worker.py");
TENDON_EMBED(tendon_ttnn_files, "worker_files.py");
TENDON_EMBED(tendon_ttnn_keeper, "worker_keeper.py");

namespace tendon::tt {

std::string_view worker_script() { return {tendon_ttnn_worker, tendon_ttnn_worker_end}; }
std::string_view worker_files_script() { return {tendon_ttnn_files, tendon_ttnn_files_end}; }
std::string_view worker_keeper_script() { return {tendon_ttnn_keeper, tendon_ttnn_keeper_end}; }

}  // namespace tendon::tt
