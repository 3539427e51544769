#define SLEEPFM_ISA amx
#define SLEEPFM_LANES 16
#define SLEEPFM_TILES
#include "cpu/mbconv_bf16_table.h"
