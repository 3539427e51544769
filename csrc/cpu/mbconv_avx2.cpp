#define SLEEPFM_ISA avx2
#define SLEEPFM_LANES 8
#include "cpu/mbconv_table.h"
