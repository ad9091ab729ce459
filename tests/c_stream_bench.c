/* Runs the generated example for gshw_stream against the verilated core.
 *
 * bench LIBRARY TO_CORE; prints the example's status, its cycles, and what the core sent. The library's
 * functions have names of the driver's, so it is opened by hand. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REGISTERS = 0x43c00000, MAX_BYTES = 1 << 16 };

int example_main(void);
extern uint64_t example_cycles;

static struct {
    void *(*open)(const char *);
    int (*read)(void *, uint32_t, uint32_t *);
    int (*write)(void *, uint32_t, uint32_t, uint32_t);
    void (*send)(void *, const uint8_t *, uint64_t);
    uint64_t (*n_received)(void *);
    void (*receive)(void *, uint8_t *, uint64_t *);
} core;

static void *handle;
static uint8_t to_core[MAX_BYTES], from_core[MAX_BYTES];
static uint64_t n_to_core, packet_ends[MAX_BYTES];

uint32_t bench_read32(uintptr_t address)
{
    uint32_t value = 0;

    if (core.read(handle, (uint32_t)(address - REGISTERS), &value) != 0)
        return 0xffffffffu;
    return value;
}

void bench_write32(uintptr_t address, uint32_t value)
{
    core.write(handle, (uint32_t)(address - REGISTERS), value, 15);
}

void bench_start_dma(void)
{
    core.send(handle, to_core, n_to_core);
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

int main(int argc, char **argv)
{
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    uint64_t i, n_bytes;
    int status;

    if (library == NULL || file == NULL)
        return 2;
    find(library, "gshw_open", &core.open);
    find(library, "gshw_read_register", &core.read);
    find(library, "gshw_write_register", &core.write);
    find(library, "gshw_send", &core.send);
    find(library, "gshw_n_received", &core.n_received);
    find(library, "gshw_receive", &core.receive);
    n_to_core = fread(to_core, 1, sizeof to_core, file);
    fclose(file);
    handle = core.open(NULL);
    status = example_main();
    n_bytes = core.n_received(handle);
    if (n_bytes > MAX_BYTES)
        return 2;
    core.receive(handle, from_core, packet_ends);
    printf("%d %" PRIu64 " ", status, example_cycles);
    for (i = 0; i < n_bytes; ++i)
        printf("%02x", from_core[i]);
    printf("\n");
    return 0;
}
