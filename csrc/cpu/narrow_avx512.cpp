#define SLEEPFM_ISA avx512
#define SLEEPFM_LANES 16
#include "cpu/narrow_table.h"
