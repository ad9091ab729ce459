// Drives one verilated gshw_core from a shared library: one clock, the load and read streams, and
// commands. Widths come from the generated header, so the same text serves every config.
#include <cstdint>
#include <cstring>
#include <memory>

#include "Vgshw_core.h"
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

constexpr int kLoops = 3;
constexpr int kCounters = 6;

struct Harness {
    VerilatedContext context;
    std::unique_ptr<Vgshw_core> top;
    uint64_t n_cycles = 0;
#ifdef GSHW_WAVES
    std::unique_ptr<Waves> waves;
#endif

    explicit Harness(const char* waves_path) {
#ifdef GSHW_WAVES
        context.traceEverOn(waves_path != nullptr);
#endif
        top = std::make_unique<Vgshw_core>(&context);
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
        top->rst = 1;
        top->eval();
        for (int i = 0; i < 4; ++i) tick();
        top->rst = 0;
        settle();
    }

    ~Harness() {
#ifdef GSHW_WAVES
        if (waves) waves->close();
#endif
        top->final();
    }

    void settle() { top->eval(); }

    void tick() {
        top->clk = 1;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles);
#endif
        top->clk = 0;
        top->eval();
#ifdef GSHW_WAVES
        if (waves) waves->dump(2 * n_cycles + 1);
#endif
        ++n_cycles;
    }
};

template <class Port> void put(Port& port, const uint32_t* limbs) {
    std::memcpy(&port, limbs, sizeof(port));
}

template <class Port> void get(const Port& port, uint32_t* limbs) {
    std::memcpy(limbs, &port, sizeof(port));
}

// Ports that only engines with max_pooling or activation_tables have, in this order.
template <class Top> void set_optional(Top* top, const uint32_t* word) {
    if constexpr (requires { top->command_maximum; }) top->command_maximum = *word++;
    if constexpr (requires { top->command_table; }) top->command_table = *word;
}

}  // namespace

extern "C" {

void* gshw_open(const char* waves_path) { return new Harness(waves_path); }

void gshw_close(void* handle) { delete static_cast<Harness*>(handle); }

uint64_t gshw_total_cycles(void* handle) { return static_cast<Harness*>(handle)->n_cycles; }

// Which elements of a scratchpad row later loads write, as the ports hold them.
void gshw_enable_elements(void* handle, const uint32_t* channels, const uint32_t* columns) {
    auto* h = static_cast<Harness*>(handle);
    put(h->top->load_scratchpad_channel_enable, channels);
    put(h->top->load_scratchpad_column_enable, columns);
    h->settle();
}

// Each load takes n words of n_limbs 32-bit limbs for addresses address, address + 1, ...
// Loads are always ready.
#define GSHW_LOAD(FUNCTION, STREAM)                                                              \
    void FUNCTION(void* handle, uint32_t address, uint32_t n, uint32_t n_limbs,                  \
                  const uint32_t* words) {                                                       \
        auto* h = static_cast<Harness*>(handle);                                                 \
        auto* top = h->top.get();                                                                \
        top->STREAM##_valid = 1;                                                                 \
        for (uint32_t i = 0; i < n; ++i) {                                                       \
            top->STREAM##_address = address + i;                                                 \
            put(top->STREAM##_data, words + static_cast<size_t>(i) * n_limbs);                   \
            h->tick();                                                                           \
        }                                                                                        \
        top->STREAM##_valid = 0;                                                                 \
        h->settle();                                                                             \
    }

GSHW_LOAD(gshw_load_scratchpad, load_scratchpad)
GSHW_LOAD(gshw_load_groups, load_group)
GSHW_LOAD(gshw_load_records, load_record)

void gshw_read_output(void* handle, uint32_t address, uint32_t n, uint32_t n_limbs,
                      uint32_t* words) {
    auto* h = static_cast<Harness*>(handle);
    auto* top = h->top.get();
    uint32_t asked = 0, got = 0;
    top->read_response_ready = 1;
    while (got < n) {
        top->read_request_valid = asked < n;
        top->read_request_data = address + asked;
        h->settle();
        const bool taken = top->read_request_valid && top->read_request_ready;
        if (top->read_response_valid) {
            get(top->read_response_data, words + static_cast<size_t>(got) * n_limbs);
            ++got;
        }
        h->tick();
        asked += taken;
    }
    top->read_request_valid = 0;
    top->read_response_ready = 0;
    h->settle();
}

// command: config_hash, group_base, n_groups, record_base, n_records, read_base, write_base,
// counts less 1, read steps, write steps, signed_input, low, high, continues, and maximum and table
// where the engine has them. Returns 0, or 1 for a refused command, 2 when limit cycles were not
// enough, 3 when a bundle drained without records, 4 for an address error.
int gshw_run(void* handle, const uint32_t* command, uint64_t limit, uint32_t* counters) {
    auto* h = static_cast<Harness*>(handle);
    auto* top = h->top.get();
    const uint32_t* next = command;
    top->command_config_hash = *next++;
    top->command_group_base = *next++;
    top->command_n_groups = *next++;
    top->command_record_base = *next++;
    top->command_n_records = *next++;
    top->command_read_base = *next++;
    top->command_write_base = *next++;
    top->command_count_less_1_0 = next[0];
    top->command_count_less_1_1 = next[1];
    top->command_count_less_1_2 = next[2];
    next += kLoops;
    top->command_read_step_0 = next[0];
    top->command_read_step_1 = next[1];
    top->command_read_step_2 = next[2];
    next += kLoops;
    top->command_write_step_0 = next[0];
    top->command_write_step_1 = next[1];
    top->command_write_step_2 = next[2];
    next += kLoops;
    top->command_signed_input = *next++;
    top->command_low = *next++;
    top->command_high = *next++;
    top->command_continues = *next++;
    set_optional(top, next);
    top->command_valid = 1;
    h->settle();
    uint64_t waited = 0;
    while (!top->command_ready) {
        if (++waited > limit) return 2;
        h->tick();
    }
    h->tick();
    top->command_valid = 0;
    h->settle();
    for (waited = 0; !top->done; ++waited) {
        if (waited > limit) return 2;
        h->tick();
    }
    const uint32_t values[kCounters] = {top->counter_cycles, top->counter_groups,
                                        top->counter_stalls, top->counter_drains,
                                        top->counter_conflicts, top->counter_replays};
    std::memcpy(counters, values, sizeof(values));
    if (top->error_config_hash) return 1;
    if (top->error_command) return top->counter_groups ? 3 : 1;
    return top->error_address ? 4 : 0;
}

void gshw_clear_errors(void* handle) {
    auto* h = static_cast<Harness*>(handle);
    h->top->clear_errors = 1;
    h->tick();
    h->top->clear_errors = 0;
    h->settle();
}

}  // extern "C"
