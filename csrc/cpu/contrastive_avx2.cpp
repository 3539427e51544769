#define SLEEPFM_ISA avx2
#define SLEEPFM_VECTOR_BYTES 32
#include "cpu/contrastive_table.h"
