#include "gshw.h"

#ifndef GSHW_READ32
#define GSHW_READ32(address) (*(volatile const uint32_t *)(address))
#endif
#ifndef GSHW_WRITE32
#define GSHW_WRITE32(address, value) (*(volatile uint32_t *)(address) = (value))
#endif

#define EVERY_INTERRUPT (GSHW_INTERRUPT_STATUS_DONE_MASK | GSHW_INTERRUPT_STATUS_ERROR_MASK)

static uint32_t read_register(const gshw_device *device, uint32_t offset)
{
    return GSHW_READ32(device->registers + offset);
}

static void write_register(const gshw_device *device, uint32_t offset, uint32_t value)
{
    GSHW_WRITE32(device->registers + offset, value);
}

static void write_pair(const gshw_device *device, uint32_t low_offset, uint64_t value)
{
    write_register(device, low_offset, (uint32_t)(value & 0xffffffffu));
    write_register(device, low_offset + 4u, (uint32_t)(value >> 32));
}

gshw_status gshw_open(gshw_device *device, uintptr_t registers, uint32_t config_hash,
                      uint32_t poll_limit)
{
    device->registers = registers;
    device->poll_limit = poll_limit;
    if (read_register(device, GSHW_MAGIC_OFFSET) != GSHW_MAGIC_VALUE)
        return GSHW_ERROR_NOT_FOUND;
    if (read_register(device, GSHW_VERSION_OFFSET) !=
        ((GSHW_VERSION_REGISTERS_VALUE << GSHW_VERSION_REGISTERS_LOW_BIT) |
         (GSHW_VERSION_PROGRAM_VALUE << GSHW_VERSION_PROGRAM_LOW_BIT)))
        return GSHW_ERROR_OTHER_VERSION;
    if (read_register(device, GSHW_CONFIG_HASH_OFFSET) != config_hash)
        return GSHW_ERROR_OTHER_CONFIG;
    return gshw_reset(device);
}

gshw_status gshw_reset(const gshw_device *device)
{
    uint32_t polls;

    write_register(device, GSHW_CONTROL_OFFSET, GSHW_CONTROL_SOFT_RESET_MASK);
    for (polls = 0; polls < device->poll_limit; ++polls)
        if (read_register(device, GSHW_CONTROL_OFFSET) & GSHW_CONTROL_READY_MASK)
            return GSHW_OK;
    return GSHW_ERROR_TIMEOUT;
}

void gshw_set_window(const gshw_device *device, uint64_t first, uint64_t last)
{
    write_pair(device, GSHW_WINDOW_FIRST_LOW_OFFSET, first);
    write_pair(device, GSHW_WINDOW_LAST_LOW_OFFSET, last);
}

void gshw_set_watchdog(const gshw_device *device, uint32_t cycles)
{
    write_register(device, GSHW_WATCHDOG_CYCLES_OFFSET, cycles);
}

gshw_status gshw_start(const gshw_device *device, uint64_t program_address)
{
    if (!(read_register(device, GSHW_CONTROL_OFFSET) & GSHW_CONTROL_READY_MASK))
        return GSHW_ERROR_BUSY;
    write_pair(device, GSHW_PROGRAM_ADDRESS_LOW_OFFSET, program_address);
    write_register(device, GSHW_INTERRUPT_STATUS_OFFSET, EVERY_INTERRUPT);
    write_register(device, GSHW_INTERRUPT_ENABLE_OFFSET, EVERY_INTERRUPT);
    write_register(device, GSHW_INTERRUPT_GLOBAL_OFFSET, GSHW_INTERRUPT_GLOBAL_ENABLE_MASK);
    write_register(device, GSHW_CONTROL_OFFSET, GSHW_CONTROL_START_MASK);
    return GSHW_OK;
}

int gshw_finished(const gshw_device *device)
{
    return (read_register(device, GSHW_INTERRUPT_STATUS_OFFSET) & EVERY_INTERRUPT) != 0;
}

gshw_status gshw_handle_interrupt(const gshw_device *device)
{
    const uint32_t status = read_register(device, GSHW_INTERRUPT_STATUS_OFFSET);

    write_register(device, GSHW_INTERRUPT_STATUS_OFFSET, status);
    if (status & GSHW_INTERRUPT_STATUS_ERROR_MASK)
        return GSHW_ERROR_PROGRAM;
    return status & GSHW_INTERRUPT_STATUS_DONE_MASK ? GSHW_OK : GSHW_ERROR_BUSY;
}

gshw_status gshw_wait(const gshw_device *device)
{
    uint32_t polls;

    for (polls = 0; polls < device->poll_limit; ++polls)
        if (gshw_finished(device))
            return gshw_handle_interrupt(device);
    return GSHW_ERROR_TIMEOUT;
}

gshw_status gshw_run(const gshw_device *device, uint64_t program_address)
{
    const gshw_status status = gshw_start(device, program_address);

    return status == GSHW_OK ? gshw_wait(device) : status;
}

void gshw_get_error(const gshw_device *device, gshw_error *error)
{
    const uint32_t where = read_register(device, GSHW_FIRST_ERROR_OFFSET);

    error->flags = read_register(device, GSHW_ERROR_OFFSET);
    error->first = (where & GSHW_FIRST_ERROR_CODE_MASK) >> GSHW_FIRST_ERROR_CODE_LOW_BIT;
    error->index = (where & GSHW_FIRST_ERROR_INDEX_MASK) >> GSHW_FIRST_ERROR_INDEX_LOW_BIT;
    error->address = gshw_get_counter64(device, GSHW_FIRST_ERROR_ADDRESS_LOW_OFFSET);
}

uint32_t gshw_get_counter(const gshw_device *device, uint32_t offset)
{
    return read_register(device, offset);
}

uint64_t gshw_get_counter64(const gshw_device *device, uint32_t low_offset)
{
    return read_register(device, low_offset) | (uint64_t)read_register(device, low_offset + 4u) << 32;
}
