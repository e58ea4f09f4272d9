#include "serve/page.h"

#include "tensor/embed.h"

TENDON_EMBED(char, tendon_status_page, TENDON_PAGE);

namespace tendon {

std::string_view status_page() { return {tendon_status_page, tendon_status_page_end}; }

}  // namespace tendon
