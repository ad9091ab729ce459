/* Runs the C driver against the verilated core, in good and bad cases; prints one line for each.
 *
 * bench LIBRARY IMAGE BASE PROGRAM OUTPUT N_OUTPUT, numbers in hexadecimal. The library's functions have
 * names of the driver's, so it is opened by hand. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gshw.h"

enum { MEMORY_BYTES = 1 << 16, REGISTERS = 0x43c00000, POLLS = 20000, INSTRUCTION_BYTES = 64 };

typedef struct {
    uint64_t read_latency, write_latency, interval, pause, fault_low, fault_high;
} model;

static struct {
    void *(*open)(const char *, uint8_t *, uint64_t, uint64_t);
    int (*read)(void *, uint32_t, uint32_t *);
    int (*write)(void *, uint32_t, uint32_t, uint32_t);
    uint64_t (*run)(void *, uint64_t);
    int (*interrupt)(void *);
    void (*settings)(void *, const model *, uint64_t);
    void (*close)(void *);
} core;

static void *handle;
static uint8_t *memory;
static uint64_t base, program, output;
static size_t n_output;
static uint32_t flipped_offset, flipped_bits; /* what a read of one register shows wrongly */

uint32_t bench_read32(uintptr_t address)
{
    uint32_t value = 0;
    const uint32_t offset = (uint32_t)(address - REGISTERS);

    /* A bus error reads as all ones, as it does on many machines. */
    if (core.read(handle, offset, &value) != 0)
        return 0xffffffffu;
    return offset == flipped_offset ? value ^ flipped_bits : value;
}

void bench_write32(uintptr_t address, uint32_t value)
{
    core.write(handle, (uint32_t)(address - REGISTERS), value, 15);
}

static void find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    memcpy(function, &symbol, sizeof symbol);
}

static void load(const char *path)
{
    FILE *file = fopen(path, "rb");

    memset(memory, 0xa5, MEMORY_BYTES);
    if (file == NULL || fread(memory, 1, MEMORY_BYTES, file) == 0)
        exit(2);
    fclose(file);
}

static void use_model(uint64_t latency, uint64_t fault_low, uint64_t fault_high)
{
    const model used = {latency, latency, 1, 0, fault_low, fault_high};

    core.settings(handle, &used, 1);
}

static void report(const char *name, gshw_status status)
{
    printf("%s %d\n", name, (int)status);
}

static void report_error(const char *name, const gshw_device *device, gshw_status status)
{
    gshw_error error;

    gshw_get_error(device, &error);
    printf("%s %d 0x%" PRIx32 " %" PRIu32 " %" PRIu32 " 0x%" PRIx64 "\n", name, (int)status,
           error.flags, error.first, error.index, error.address);
}

static void print_output(const char *name)
{
    size_t i;

    printf("%s ", name);
    for (i = 0; i < n_output; ++i)
        printf("%02x", memory[output - base + i]);
    printf("\n");
}

/* Resets after an error, and shows that the core works. */
static void run_again(const gshw_device *device, const char *image, const char *name)
{
    report("reset", gshw_reset(device));
    use_model(10, 1, 0);
    load(image);
    report("again", gshw_run(device, program));
    print_output(name);
}

int main(int argc, char **argv)
{
    gshw_device device, impatient;
    gshw_status status;
    void *library;
    const char *image = argv[2];

    if (argc != 7 || (library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) == NULL)
        return 2;
    base = strtoull(argv[3], NULL, 16);
    program = strtoull(argv[4], NULL, 16);
    output = strtoull(argv[5], NULL, 16);
    n_output = (size_t)strtoull(argv[6], NULL, 16);
    memory = malloc(MEMORY_BYTES);
    find(library, "gshw_open", &core.open);
    find(library, "gshw_read_register", &core.read);
    find(library, "gshw_write_register", &core.write);
    find(library, "gshw_run", &core.run);
    find(library, "gshw_interrupt", &core.interrupt);
    find(library, "gshw_settings", &core.settings);
    find(library, "gshw_close", &core.close);
    handle = core.open(NULL, memory, base, MEMORY_BYTES);
    use_model(10, 1, 0);
    load(image);

    /* Who answers? */
    report("nothing_there",
           gshw_open(&device, REGISTERS + 0x800, GSHW_CONFIG_HASH_VALUE, POLLS));
    flipped_offset = GSHW_VERSION_OFFSET;
    flipped_bits = 1;
    report("other_version", gshw_open(&device, REGISTERS, GSHW_CONFIG_HASH_VALUE, POLLS));
    flipped_bits = 0;
    report("other_config", gshw_open(&device, REGISTERS, ~GSHW_CONFIG_HASH_VALUE, POLLS));
    report("open", gshw_open(&device, REGISTERS, GSHW_CONFIG_HASH_VALUE, POLLS));

    /* Polling. */
    gshw_set_window(&device, base, base + MEMORY_BYTES - 1);
    report("run", gshw_run(&device, program));
    print_output("run_output");
    printf("counters %" PRIu64 " %" PRIu32 "\n",
           gshw_get_counter64(&device, GSHW_COUNTER_CYCLES_LOW_OFFSET),
           gshw_get_counter(&device, GSHW_COUNTER_GROUPS_OFFSET));

    /* With the interrupt: nothing is read while the program runs. */
    load(image);
    report("start", gshw_start(&device, program));
    report("start_busy", gshw_start(&device, program));
    report("too_early", gshw_handle_interrupt(&device));
    printf("finished %d\n", gshw_finished(&device));
    core.run(handle, 1000000);
    printf("interrupt %d\n", core.interrupt(handle));
    printf("finished %d\n", gshw_finished(&device));
    report("handle", gshw_handle_interrupt(&device));
    printf("interrupt %d\n", core.interrupt(handle));
    print_output("interrupt_output");

    /* A wait that gives up; the program itself goes on, and ends. */
    use_model(1000, 1, 0);
    load(image);
    impatient = device;
    impatient.poll_limit = 5;
    report("timeout", gshw_run(&impatient, program));
    report("reset_timeout", gshw_reset(&impatient));
    run_again(&device, image, "timeout_output");

    /* A program for another engine. */
    memory[program - base + 12] ^= 1;
    status = gshw_run(&device, program);
    report_error("header", &device, status);
    report("halted", gshw_start(&device, program));
    run_again(&device, image, "header_output");

    /* Damaged memory: the CRC of the second instruction. */
    memory[program - base + 3 * INSTRUCTION_BYTES - 1] ^= 1;
    status = gshw_run(&device, program);
    report_error("corrupted", &device, status);
    run_again(&device, image, "corrupted_output");

    /* Memory that answers with errors. */
    use_model(10, output, output);
    status = gshw_run(&device, program);
    report_error("write_bus", &device, status);
    run_again(&device, image, "write_bus_output");
    use_model(10, program + INSTRUCTION_BYTES, program + INSTRUCTION_BYTES);
    status = gshw_run(&device, program);
    report_error("read_bus", &device, status);
    run_again(&device, image, "read_bus_output");

    /* Memory that the core must not touch. */
    gshw_set_window(&device, base, output);
    status = gshw_run(&device, program);
    report_error("window", &device, status);
    gshw_set_window(&device, base, base + MEMORY_BYTES - 1);
    run_again(&device, image, "window_output");

    /* Memory that hangs for long. */
    gshw_set_watchdog(&device, 200);
    use_model(5000, 1, 0);
    status = gshw_run(&device, program);
    report_error("watchdog", &device, status);
    gshw_set_watchdog(&device, 0);
    run_again(&device, image, "watchdog_output");

    core.close(handle);
    free(memory);
    return 0;
}
