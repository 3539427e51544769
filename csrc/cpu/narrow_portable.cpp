#define SLEEPFM_ISA portable
#define SLEEPFM_LANES 4
#include "cpu/narrow_table.h"
