#define SLEEPFM_ISA portable
#define SLEEPFM_VECTOR_BYTES 16
#include "cpu/contrastive_table.h"
