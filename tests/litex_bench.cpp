// Runs one program on a LiteX system (litex_system.py) from outside: IMAGE PROGRAM OUTPUT N_OUTPUT.
// Prints the output as hexadecimal digits.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "Vplatform.h"
#include "gshw_registers.h"
#include "verilated.h"

constexpr uint32_t kMemory = 0x40000000, kRegisters = 0x80000000, kEventStatus = 0x800;

static std::unique_ptr<Vplatform> top;

static void cycle() {
    top->clk = 1;
    top->eval();
    top->clk = 0;
    top->eval();
}

static uint32_t access(uint32_t address, uint32_t data, bool write) {
    top->host_adr = address >> 2;
    top->host_dat_w = data;
    top->host_we = write;
    top->host_sel = 15;
    top->host_cyc = top->host_stb = 1;
    top->eval();
    for (int waited = 0; waited < 100000; ++waited) {
        const bool ended = top->host_ack || top->host_err, failed = top->host_err;
        const uint32_t value = top->host_dat_r;
        cycle();
        if (!ended) continue;
        top->host_cyc = top->host_stb = 0;
        top->eval();
        cycle();
        if (failed) break;
        return value;
    }
    std::fprintf(stderr, "0x%08x: no answer, or an error\n", address);
    std::exit(2);
}

static void set(uint32_t offset, uint32_t value) { access(kRegisters + offset, value, true); }
static uint32_t get(uint32_t offset) { return access(kRegisters + offset, 0, false); }

int main(int, char** argv) {
    top = std::make_unique<Vplatform>();
    top->clk = 0;
    top->host_cyc = top->host_stb = 0;
    for (int i = 0; i < 50; ++i) cycle();
    std::vector<uint32_t> image(1 << 14);
    FILE* file = std::fopen(argv[1], "rb");
    const size_t n_words = std::fread(image.data(), 4, image.size(), file);
    std::fclose(file);
    for (size_t i = 0; i < n_words; ++i) access(kMemory + 4 * i, image[i], true);

    if (get(GSHW_MAGIC_OFFSET) != GSHW_MAGIC_VALUE) return 3;
    set(GSHW_PROGRAM_ADDRESS_LOW_OFFSET, std::strtoul(argv[2], nullptr, 16));
    set(GSHW_INTERRUPT_GLOBAL_OFFSET, 1);
    set(GSHW_INTERRUPT_ENABLE_OFFSET, 3);
    if (access(kEventStatus, 0, false)) return 4;
    set(GSHW_CONTROL_OFFSET, GSHW_CONTROL_START_MASK);
    for (int polls = 0; !access(kEventStatus, 0, false); ++polls)
        if (polls > 100000) return 5;
    if (get(GSHW_ERROR_OFFSET)) return 6;
    const uint32_t output = std::strtoul(argv[3], nullptr, 16);
    const uint32_t n_output = std::strtoul(argv[4], nullptr, 16);
    for (uint32_t a = output; a < output + n_output; ++a)
        std::printf("%02x", access(a & ~3u, 0, false) >> 8 * (a & 3) & 255);
    top->final();
    top.reset();
    return 0;
}
