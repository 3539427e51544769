#define SLEEPFM_ISA avx512_bf16
#define SLEEPFM_LANES 16
#include "cpu/mbconv_bf16_table.h"
