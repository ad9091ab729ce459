// Drives one verilated gshw_axi from a shared library: registers over AXI4-Lite, and a memory
// behind the AXI4 master.
//
// The fixed memory model: AR, AW and W are always accepted. A read burst accepted in cycle t offers
// its first beat in cycle t + read_latency, or when the burst before it has ended, then one beat every
// `interval` cycles, in order. A write beat is accepted every `interval` cycles; the response to a burst
// whose last beat (or address, if later) was accepted in cycle t is offered in cycle t + write_latency.
// Reads and writes do not share bandwidth. `pause` in 1/256 makes every channel wait at random.
#define GSHW_MODEL Vgshw_axi
#define GSHW_MODEL_HEADER "Vgshw_axi.h"
#include "harness_bus.h"

#include <deque>
#include <vector>

namespace {

constexpr int kOkay = 0, kSlaveError = 2, kDecodeError = 3;

// In the order of gshw.drivers.simulated.MemoryModel, as the Python side passes them.
struct Settings {
    uint64_t read_latency, write_latency, interval, pause, fault_low, fault_high;
};

struct Traffic {
    uint64_t read_bursts, read_beats, write_bursts, write_beats, stray_bytes;
};

struct Burst {
    uint64_t address;
    uint32_t n_beats;
    uint64_t ready_at;
};

struct Harness : BusHarness<Harness> {
    static constexpr size_t kBytes = sizeof(GSHW_MODEL::m_axi_rdata) < 4
                                         ? 4
                                         : sizeof(GSHW_MODEL::m_axi_rdata);
    struct WriteBeat {
        uint8_t data[kBytes];
        uint64_t strobes;
        bool last;
    };

    uint8_t* memory;
    uint64_t base, size;
    Settings settings{1, 1, 1, 0, 1, 0};
    Traffic traffic{};
    Coin coin;
    std::deque<Burst> reads, writes;
    std::deque<WriteBeat> write_beats;
    std::deque<std::pair<uint64_t, int>> responses;  // ready at, response
    uint64_t next_read = 0, next_write = 0;
    uint32_t read_beat = 0, write_beat = 0;
    int write_response = kOkay;
    bool offering = false, responding = false;

    Harness(const char* waves_path, uint8_t* memory_, uint64_t base_, uint64_t size_)
        : BusHarness(waves_path), memory(memory_), base(base_), size(size_) {
        hard_reset();
    }

    void forget() {
        reads.clear();
        writes.clear();
        write_beats.clear();
        responses.clear();
        read_beat = write_beat = 0;
        write_response = kOkay;
        offering = responding = false;
        top->m_axi_rvalid = top->m_axi_bvalid = 0;
        top->m_axi_arready = top->m_axi_awready = top->m_axi_wready = 0;
    }

    int response_at(uint64_t address) const {
        if (address < base || address - base + kBytes > size) return kDecodeError;
        const bool faulty = settings.fault_low <= settings.fault_high &&
                            address + kBytes > settings.fault_low && address <= settings.fault_high;
        return faulty ? kSlaveError : kOkay;
    }

    void before() {
        if (!offering) {
            offering = !reads.empty() && n_cycles >= reads.front().ready_at &&
                       n_cycles >= next_read && !coin(settings.pause);
            top->m_axi_rvalid = offering;
            if (offering) {
                const Burst& burst = reads.front();
                const uint64_t address = beat_address(burst, read_beat);
                const int response = response_at(address);
                static const uint8_t nothing[kBytes] = {};
                put(top->m_axi_rdata, response == kDecodeError ? nothing : memory + (address - base));
                top->m_axi_rresp = response;
                top->m_axi_rlast = read_beat + 1 == burst.n_beats;
            }
        }
        top->m_axi_arready = !coin(settings.pause);
        top->m_axi_awready = !coin(settings.pause);
        top->m_axi_wready = n_cycles >= next_write && !coin(settings.pause);
        if (!responding) {
            responding = !responses.empty() && n_cycles >= responses.front().first &&
                         !coin(settings.pause);
            top->m_axi_bvalid = responding;
            if (responding) top->m_axi_bresp = responses.front().second;
        }
    }

    void after() {
        if (top->m_axi_rvalid && top->m_axi_rready) {
            offering = false;
            ++traffic.read_beats;
            next_read = n_cycles + settings.interval;
            if (++read_beat == reads.front().n_beats) {
                read_beat = 0;
                reads.pop_front();
            }
        }
        if (top->m_axi_arvalid && top->m_axi_arready) {
            ++traffic.read_bursts;
            reads.push_back({top->m_axi_araddr, top->m_axi_arlen + 1u,
                             n_cycles + settings.read_latency});
        }
        if (top->m_axi_bvalid && top->m_axi_bready) {
            responding = false;
            responses.pop_front();
        }
        if (top->m_axi_awvalid && top->m_axi_awready) {
            ++traffic.write_bursts;
            writes.push_back({top->m_axi_awaddr, top->m_axi_awlen + 1u, 0});
        }
        if (top->m_axi_wvalid && top->m_axi_wready) {
            ++traffic.write_beats;
            next_write = n_cycles + settings.interval;
            WriteBeat beat{};
            get(top->m_axi_wdata, beat.data);
            beat.strobes = top->m_axi_wstrb;
            beat.last = top->m_axi_wlast;
            write_beats.push_back(beat);
        }
        while (!writes.empty() && !write_beats.empty()) write_one();
    }

    // Narrow and unaligned first beats: data lie in the lanes of the aligned address.
    static uint64_t beat_address(const Burst& burst, uint32_t beat) {
        return (burst.address & ~static_cast<uint64_t>(kBytes - 1)) + uint64_t{beat} * kBytes;
    }

    void write_one() {
        const Burst& burst = writes.front();
        const WriteBeat& beat = write_beats.front();
        const uint64_t address = beat_address(burst, write_beat);
        const int response = beat.strobes ? response_at(address) : kOkay;
        if (response > write_response) write_response = response;
        for (size_t lane = 0; lane < kBytes; ++lane) {
            if (!(beat.strobes >> lane & 1)) continue;
            if (response == kOkay)
                memory[address - base + lane] = beat.data[lane];
            else
                ++traffic.stray_bytes;
        }
        const bool last = beat.last;
        write_beats.pop_front();
        if (++write_beat == burst.n_beats || last) {
            // A burst that ends too early or too late answers with an error of its own.
            if (write_beat != burst.n_beats || !last) write_response = kDecodeError;
            responses.push_back({n_cycles + settings.write_latency, write_response});
            write_response = kOkay;
            write_beat = 0;
            writes.pop_front();
        }
    }
};

}  // namespace

extern "C" {

void* gshw_open(const char* waves_path, uint8_t* memory, uint64_t base, uint64_t size) {
    return new Harness(waves_path, memory, base, size);
}

GSHW_COMMON_INTERFACE(Harness)

void gshw_settings(void* handle, const uint64_t* values, uint64_t seed) {
    auto* h = static_cast<Harness*>(handle);
    std::memcpy(&h->settings, values, sizeof(Settings));
    h->coin.state = seed * 0x9e3779b97f4a7c15u + 1;
}

void gshw_traffic(void* handle, uint64_t* values) {
    std::memcpy(values, &static_cast<Harness*>(handle)->traffic, sizeof(Traffic));
}

}  // extern "C"
