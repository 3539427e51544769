#define SLEEPFM_ISA amx
#define SLEEPFM_VECTOR_BYTES 64
#define SLEEPFM_TILES
#include "cpu/contrastive_tiles_table.h"
