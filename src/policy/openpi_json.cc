// assets/openpi.json inside the library: a file of its own, since the one that reads it is compiled
// together with others.
#include "tensor/embed.h"

TENDON_EMBED(char, tendon_openpi, TENDON_ASSETS "/openpi.json");
