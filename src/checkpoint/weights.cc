#include "checkpoint/weights.h"
