#include "backends/ttnn/worker_script.h"

#include "tensor/embed.h"

TENDON_EMBED(char, tendon_ttnn_worker,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker.py");
TENDON_EMBED(char, tendon_ttnn_files,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker_files.py");
TENDON_EMBED(char, tendon_ttnn_keeper,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker_keeper.py");

namespace tendon::tt {

std::string_view worker_script() { return {tendon_ttnn_worker, tendon_ttnn_worker_end}; }
std::string_view worker_files_script() { return {tendon_ttnn_files, tendon_ttnn_files_end}; }
std::string_view worker_keeper_script() { return {tendon_ttnn_keeper, tendon_ttnn_keeper_end}; }

}  // namespace tendon::tt
