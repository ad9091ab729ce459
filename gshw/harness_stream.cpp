// Drives one verilated gshw_stream from a shared library: registers over AXI4-Lite, bytes in on
// s_axis and out on m_axis. `pause` in 1/256 makes both streams wait at random.
#define GSHW_MODEL Vgshw_stream
#define GSHW_MODEL_HEADER "Vgshw_stream.h"
#include "harness_bus.h"

#include <deque>
#include <vector>

namespace {

struct Harness : BusHarness<Harness> {
    static constexpr size_t kBytes = sizeof(GSHW_MODEL::s_axis_tdata);

    const uint8_t* input = nullptr;  // whole beats, still to send
    uint64_t n_input = 0;
    std::vector<uint8_t> output;
    std::vector<uint64_t> packet_ends;
    uint32_t pause = 0;
    bool sending = false;
    Coin coin;

    explicit Harness(const char* waves_path) : BusHarness(waves_path) { hard_reset(); }

    void forget() {
        n_input = 0;
        sending = false;
        output.clear();
        packet_ends.clear();
        top->s_axis_tvalid = top->m_axis_tready = 0;
    }

    void before() {
        if (!sending) {
            sending = n_input && !coin(pause);
            top->s_axis_tvalid = sending;
            if (sending) {
                put(top->s_axis_tdata, input);
                top->s_axis_tlast = n_input == kBytes;
            }
        }
        top->m_axis_tready = !coin(pause);
    }

    void after() {
        if (top->s_axis_tvalid && top->s_axis_tready) {
            sending = false;
            input += kBytes;
            n_input -= kBytes;
        }
        if (top->m_axis_tvalid && top->m_axis_tready) {
            const size_t end = output.size();
            output.resize(end + kBytes);
            get(top->m_axis_tdata, output.data() + end);
            if (top->m_axis_tlast) packet_ends.push_back(output.size());
        }
    }
};

}  // namespace

extern "C" {

void* gshw_open(const char* waves_path) { return new Harness(waves_path); }

GSHW_COMMON_INTERFACE(Harness)

// The bytes must stay where they are until they are sent; n_bytes is a whole number of beats.
void gshw_send(void* handle, const uint8_t* bytes, uint64_t n_bytes) {
    auto* h = static_cast<Harness*>(handle);
    h->input = bytes;
    h->n_input = n_bytes;
}

uint64_t gshw_unsent(void* handle) { return static_cast<Harness*>(handle)->n_input; }

void gshw_pause(void* handle, uint32_t pause, uint64_t seed) {
    auto* h = static_cast<Harness*>(handle);
    h->pause = pause;
    h->coin.state = seed * 0x9e3779b97f4a7c15u + 1;
}

uint64_t gshw_n_received(void* handle) { return static_cast<Harness*>(handle)->output.size(); }

uint64_t gshw_n_packets(void* handle) {
    return static_cast<Harness*>(handle)->packet_ends.size();
}

void gshw_receive(void* handle, uint8_t* bytes, uint64_t* packet_ends) {
    auto* h = static_cast<Harness*>(handle);
    std::memcpy(bytes, h->output.data(), h->output.size());
    std::memcpy(packet_ends, h->packet_ends.data(), h->packet_ends.size() * sizeof(uint64_t));
    h->output.clear();
    h->packet_ends.clear();
}

}  // extern "C"
