#define SLEEPFM_ISA portable
#define SLEEPFM_LANES 4
#include "cpu/mbconv_table.h"
