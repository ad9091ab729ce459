// Drives one verilated gshw_uart from a shared library: bytes go in on rx and come out of tx, bit by
// bit, as a serial cable would bring them.
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "Vgshw_uart.h"
#include "verilated.h"
#if defined(GSHW_FST)
#include "verilated_fst_c.h"
using Waves = VerilatedFstC;
#define GSHW_WAVES
#elif defined(GSHW_VCD)
#include "verilated_vcd_c.h"
using Waves = VerilatedVcdC;
#define GSHW_WAVES
#endif

namespace {

struct Harness {
    VerilatedContext context;
    std::unique_ptr<Vgshw_uart> top;
#ifdef GSHW_WAVES
    std::unique_ptr<Waves> waves;
#endif
    uint64_t n_cycles = 0;
    uint32_t divisor;
    std::deque<uint8_t> to_board;
    std::vector<uint8_t> from_board;
    // Bits still to drive or to sample, and cycles until the next one. Out: 10 is between bytes.
    uint32_t out_bits = 0, n_out = 0, out_wait = 0;
    uint32_t in_bits = 0, n_in = 0, in_wait = 0;

    Harness(const char* waves_path, uint32_t cycles_per_bit) : divisor(cycles_per_bit) {
#ifdef GSHW_WAVES
        context.traceEverOn(waves_path != nullptr);
#endif
        top = std::make_unique<Vgshw_uart>(&context);
#ifdef GSHW_WAVES
        if (waves_path) {
            waves = std::make_unique<Waves>();
            top->trace(waves.get(), 99);
            waves->open(waves_path);
        }
#else
        (void)waves_path;
#endif
        top->clk = 0;
        top->rx = 1;
        top->divisor = divisor;
        top->rst = 1;
        for (int i = 0; i < 4; ++i) cycle();
        top->rst = 0;
    }

    ~Harness() {
#ifdef GSHW_WAVES
        if (waves) waves->close();
#endif
        top->final();
    }

    void drive_rx() {
        if (out_wait) {
            --out_wait;
        } else if (n_out) {
            top->rx = out_bits & 1;
            out_bits >>= 1;
            --n_out;
            out_wait = divisor - 1;
        } else if (!to_board.empty()) {
            // Data and stop bit; the start bit is driven now.
            out_bits = to_board.front() | 0x100;
            to_board.pop_front();
            n_out = 9;
            out_wait = divisor - 1;
            top->rx = 0;
        }
    }

    void sample_tx() {
        if (!n_in) {
            if (!top->tx) {
                n_in = 9;
                in_bits = 0;
                in_wait = divisor + divisor / 2;
            }
        } else if (in_wait > 1) {
            --in_wait;
        } else {
            in_bits = in_bits >> 1 | (uint32_t(top->tx) << 8);
            in_wait = divisor;
            if (!--n_in && in_bits >> 8) from_board.push_back(in_bits & 255);
        }
    }

    void cycle() {
        drive_rx();
        top->clk = 0;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles);
#endif
        top->clk = 1;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles + 1);
#endif
        sample_tx();
        ++n_cycles;
    }
};

}  // namespace

extern "C" {

void* gshw_open(const char* waves_path, uint32_t divisor) {
    return new Harness(waves_path, divisor);
}

void gshw_close(void* handle) { delete static_cast<Harness*>(handle); }

uint64_t gshw_total_cycles(void* handle) { return static_cast<Harness*>(handle)->n_cycles; }

// Bytes for the board, after those that are still on their way to it.
void gshw_send(void* handle, const uint8_t* bytes, uint64_t n_bytes) {
    auto& queue = static_cast<Harness*>(handle)->to_board;
    queue.insert(queue.end(), bytes, bytes + n_bytes);
}

void gshw_run(void* handle, uint64_t n_cycles) {
    while (n_cycles--) static_cast<Harness*>(handle)->cycle();
}

// Takes what the board has sent: at most `room` bytes; returns how many.
uint64_t gshw_receive(void* handle, uint8_t* bytes, uint64_t room) {
    auto& queue = static_cast<Harness*>(handle)->from_board;
    const uint64_t n = queue.size() < room ? queue.size() : room;
    std::memcpy(bytes, queue.data(), n);
    queue.erase(queue.begin(), queue.begin() + n);
    return n;
}

// 1 while bytes are on their way to the board, or a program runs.
int gshw_busy(void* handle) {
    auto* h = static_cast<Harness*>(handle);
    return h->n_out || !h->to_board.empty() || h->n_in || h->top->busy;
}

}  // extern "C"
