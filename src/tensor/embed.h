// Files inside the library.
#pragma once

// NOLINTBEGIN: the assembler puts the file into the read-only section.
// `type symbol[]` and `symbol_end[]` are the bytes of the file `path`, a literal.
#define TENDON_EMBED(type, symbol, path)                                         \
  asm(".section .rodata\n.global " #symbol "\n.global " #symbol "_end\n" #symbol \
      ":\n"                                                                      \
      ".incbin \"" path "\"\n" #symbol "_end:\n.previous\n");                    \
  extern "C" const type symbol[], symbol##_end[]
// NOLINTEND
