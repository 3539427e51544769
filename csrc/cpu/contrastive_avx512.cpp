#define SLEEPFM_ISA avx512
#define SLEEPFM_VECTOR_BYTES 64
#include "cpu/contrastive_table.h"
