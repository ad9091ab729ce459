/* Bare-metal driver of a gshw_axi core: C99, no allocation, no library calls.
 *
 * The core reads and writes memory by itself. On a machine with caches, clean the program, the weights and
 * the inputs before gshw_start, and invalidate the results before reading them.
 *
 * GSHW_READ32(address) and GSHW_WRITE32(address, value) may be defined before this file is compiled where
 * registers are not plain memory. */
#ifndef GSHW_H
#define GSHW_H

#include <stdint.h>

#include "gshw_registers.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    GSHW_OK = 0,
    GSHW_ERROR_NOT_FOUND,      /* no gshw core answers at this address */
    GSHW_ERROR_OTHER_VERSION,  /* its registers or programs are of another version */
    GSHW_ERROR_OTHER_CONFIG,   /* it was generated from another config */
    GSHW_ERROR_BUSY,           /* a program runs, or an error has not been reset */
    GSHW_ERROR_TIMEOUT,        /* it did not end within the polls allowed */
    GSHW_ERROR_PROGRAM         /* the core stopped the program: see gshw_get_error */
} gshw_status;

typedef struct {
    uintptr_t registers; /* address of the first register */
    uint32_t poll_limit; /* polls after which a wait gives up */
} gshw_device;

typedef struct {
    uint32_t flags;   /* GSHW_ERROR_*_MASK */
    uint32_t first;   /* GSHW_FIRST_ERROR_CODE_IS_* of the first of them */
    uint32_t index;   /* of its instruction, modulo 65536 */
    uint64_t address; /* of a bus or window error, else 0 */
} gshw_error;

/* Checks what answers at `registers` and resets it. Changes only *device and the core. */
gshw_status gshw_open(gshw_device *device, uintptr_t registers, uint32_t config_hash,
                      uint32_t poll_limit);

/* Stops the core cleanly and clears its errors; what software configured is kept. */
gshw_status gshw_reset(const gshw_device *device);

/* Bytes of memory that the core may touch, both inclusive; everything after a hard reset. */
void gshw_set_window(const gshw_device *device, uint64_t first, uint64_t last);

/* Cycles without any movement after which a program is stopped; 0 never stops it. */
void gshw_set_watchdog(const gshw_device *device, uint32_t cycles);

/* Starts the program at this address and returns at once. */
gshw_status gshw_start(const gshw_device *device, uint64_t program_address);

/* Whether the program has ended, well or not; for use without interrupts. */
int gshw_finished(const gshw_device *device);

/* Polls until the program has ended, and acknowledges it. */
gshw_status gshw_wait(const gshw_device *device);

/* For an interrupt handler: acknowledges the interrupt; GSHW_OK or GSHW_ERROR_PROGRAM once the program has
 * ended, else GSHW_ERROR_BUSY. */
gshw_status gshw_handle_interrupt(const gshw_device *device);

/* gshw_start, then gshw_wait. */
gshw_status gshw_run(const gshw_device *device, uint64_t program_address);

/* Why the core stopped; before gshw_reset. */
void gshw_get_error(const gshw_device *device, gshw_error *error);

/* A 32-bit counter, by its offset GSHW_*_OFFSET; final after the end of a program. */
uint32_t gshw_get_counter(const gshw_device *device, uint32_t offset);

/* A 64-bit counter, by the offset of its lower half, GSHW_*_LOW_OFFSET. */
uint64_t gshw_get_counter64(const gshw_device *device, uint32_t low_offset);

#ifdef __cplusplus
}
#endif

#endif
