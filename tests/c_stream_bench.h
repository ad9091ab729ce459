/* Registers and DMA of the simulated gshw_stream, for gshw.c and the generated example.c. */
#include "c_driver_bench.h"

void bench_start_dma(void);

#define START_DMA() bench_start_dma()
