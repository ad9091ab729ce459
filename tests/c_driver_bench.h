/* Registers of the simulated core, for gshw.c: included before it by the compiler's -include. */
#include <stdint.h>

uint32_t bench_read32(uintptr_t address);
void bench_write32(uintptr_t address, uint32_t value);

#define GSHW_READ32(address) bench_read32(address)
#define GSHW_WRITE32(address, value) bench_write32(address, value)
