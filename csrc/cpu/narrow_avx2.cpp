#define SLEEPFM_ISA avx2
#define SLEEPFM_LANES 8
#include "cpu/narrow_table.h"
