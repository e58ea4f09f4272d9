#include "serve/page.h"

// NOLINTBEGIN: the assembler puts the file into the read-only section.
asm(".section .rodata\n.global tendon_status_page\n.global tendon_status_page_end\n"
    "tendon_status_page:\n.incbin \"" TENDON_PAGE "\"\ntendon_status_page_end:\n.previous\n");
extern "C" const char tendon_status_page[], tendon_status_page_end[];
// NOLINTEND

namespace tendon {

std::string_view status_page() { return {tendon_status_page, tendon_status_page_end}; }

}  // namespace tendon
