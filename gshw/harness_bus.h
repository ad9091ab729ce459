// What the harnesses of gshw_axi and gshw_stream share: clock, reset, waves, AXI4-Lite accesses.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>

#include GSHW_MODEL_HEADER
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

template <class Port> void put(Port& port, const void* bytes) {
    std::memcpy(&port, bytes, sizeof(port));
}

template <class Port> void get(const Port& port, void* bytes) {
    std::memcpy(bytes, &port, sizeof(port));
}

// A reproducible coin: true with probability n / 256.
struct Coin {
    uint64_t state = 0x9e3779b97f4a7c15u;
    bool operator()(uint32_t n) {
        if (!n) return false;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return (state >> 24 & 255) < n;
    }
};

constexpr uint64_t kRegisterLimit = 100000;  // cycles after which an access counts as hung

// Derived supplies `before(top)`, which drives inputs from the state of the surroundings, and
// `after(top)`, which sees the settled signals of the cycle just before its rising edge.
template <class Derived> struct BusHarness {
    VerilatedContext context;
    std::unique_ptr<GSHW_MODEL> top;
    uint64_t n_cycles = 0;
#ifdef GSHW_WAVES
    std::unique_ptr<Waves> waves;
#endif

    explicit BusHarness(const char* waves_path) {
#ifdef GSHW_WAVES
        context.traceEverOn(waves_path != nullptr);
#endif
        top = std::make_unique<GSHW_MODEL>(&context);
#ifdef GSHW_WAVES
        if (waves_path) {
            waves = std::make_unique<Waves>();
            top->trace(waves.get(), 99);
            waves->open(waves_path);
        }
#else
        (void)waves_path;
#endif
        top->aclk = 0;
        top->aresetn = 0;
    }

    ~BusHarness() {
#ifdef GSHW_WAVES
        if (waves) waves->close();
#endif
        top->final();
    }

    void hard_reset() {
        auto* self = static_cast<Derived*>(this);
        self->forget();
        top->s_axi_awvalid = top->s_axi_wvalid = top->s_axi_bready = 0;
        top->s_axi_arvalid = top->s_axi_rready = 0;
        top->aresetn = 0;
        for (int i = 0; i < 4; ++i) edge();
        top->aresetn = 1;
    }

    void edge() {
        top->aclk = 0;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles);
#endif
        top->aclk = 1;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles + 1);
#endif
        ++n_cycles;
    }

    void cycle() {
        auto* self = static_cast<Derived*>(this);
        self->before();
        top->aclk = 0;
        top->eval();
        self->after();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles);
#endif
        top->aclk = 1;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles + 1);
#endif
        ++n_cycles;
    }

    // One AXI4-Lite access; returns the response (0 is OKAY), or -1 when there was none.
    int write_register(uint32_t address, uint32_t value, uint32_t strobes) {
        top->s_axi_awaddr = address;
        top->s_axi_awprot = 0;
        top->s_axi_wdata = value;
        top->s_axi_wstrb = strobes;
        top->s_axi_awvalid = top->s_axi_wvalid = 1;
        top->s_axi_bready = 1;
        for (uint64_t waited = 0; waited < kRegisterLimit; ++waited) {
            cycle_sampling();
            if (took_aw) top->s_axi_awvalid = 0;
            if (took_w) top->s_axi_wvalid = 0;
            if (took_b) {
                top->s_axi_bready = 0;
                return response;
            }
        }
        return -1;
    }

    int read_register(uint32_t address, uint32_t* value) {
        top->s_axi_araddr = address;
        top->s_axi_arprot = 0;
        top->s_axi_arvalid = 1;
        top->s_axi_rready = 1;
        for (uint64_t waited = 0; waited < kRegisterLimit; ++waited) {
            cycle_sampling();
            if (took_ar) top->s_axi_arvalid = 0;
            if (took_r) {
                top->s_axi_rready = 0;
                *value = read_value;
                return response;
            }
        }
        return -1;
    }

    // Runs until the interrupt is high, at most `limit` cycles; returns the cycles run.
    // Verilator gives the port another name because some C++ compilers know the word.
    uint64_t run(uint64_t limit) {
        uint64_t done = 0;
        while (done < limit && !top->__SYM__interrupt) {
            cycle();
            ++done;
        }
        return done;
    }

   private:
    bool took_aw = false, took_w = false, took_b = false, took_ar = false, took_r = false;
    int response = 0;
    uint32_t read_value = 0;

    void cycle_sampling() {
        auto* self = static_cast<Derived*>(this);
        self->before();
        top->aclk = 0;
        top->eval();
        took_aw = top->s_axi_awvalid && top->s_axi_awready;
        took_w = top->s_axi_wvalid && top->s_axi_wready;
        took_b = top->s_axi_bvalid && top->s_axi_bready;
        took_ar = top->s_axi_arvalid && top->s_axi_arready;
        took_r = top->s_axi_rvalid && top->s_axi_rready;
        response = took_b ? top->s_axi_bresp : top->s_axi_rresp;
        read_value = top->s_axi_rdata;
        self->after();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles);
#endif
        top->aclk = 1;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles + 1);
#endif
        ++n_cycles;
    }
};

// The part of the interface that both harnesses offer. HARNESS is the derived class.
#define GSHW_COMMON_INTERFACE(HARNESS)                                                           \
    void gshw_close(void* handle) { delete static_cast<HARNESS*>(handle); }                      \
    void gshw_reset(void* handle) { static_cast<HARNESS*>(handle)->hard_reset(); }               \
    uint64_t gshw_total_cycles(void* handle) { return static_cast<HARNESS*>(handle)->n_cycles; } \
    int gshw_write_register(void* handle, uint32_t address, uint32_t value, uint32_t strobes) {  \
        return static_cast<HARNESS*>(handle)->write_register(address, value, strobes);           \
    }                                                                                            \
    int gshw_read_register(void* handle, uint32_t address, uint32_t* value) {                    \
        return static_cast<HARNESS*>(handle)->read_register(address, value);                     \
    }                                                                                            \
    uint64_t gshw_run(void* handle, uint64_t limit) {                                            \
        return static_cast<HARNESS*>(handle)->run(limit);                                        \
    }                                                                                            \
    int gshw_interrupt(void* handle) { return static_cast<HARNESS*>(handle)->top->__SYM__interrupt; }
