// The tile instructions of AMX as plain functions, to run native_amx.cpp without the hardware.
//
// From Intel's description of each instruction (SDM volume 2, chapters on AMX). What the processor
// faults at ends the program here; so does what it would let pass and is still a mistake: sums that
// were stored and are then added to without being cleared.
//
// AWQ_EMULATED_SIGILL in the environment makes ldtilecfg an illegal instruction, as where the
// system does not allow tiles.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <csignal>

namespace emulated {

struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

struct TileRegister {
    uint8_t bytes[16][64];
    bool is_stored;  // its sums were taken: adding to them is a mistake
};

struct State {
    Config config;
    TileRegister tiles[8];
};

inline thread_local State state = {};

[[noreturn]] inline void fault(const char* what, int tile) {
    std::fprintf(stderr, "emulated tile %d: %s\n", tile, what);
    std::abort();
}

inline void require(bool holds, const char* what, int tile = -1) {
    if (!holds) fault(what, tile);
}

inline void load_config(const void* from) {
    if (std::getenv("AWQ_EMULATED_SIGILL") != nullptr) std::raise(SIGILL);
    Config config;
    static_assert(sizeof config == 64, "as in memory");
    std::memcpy(&config, from, sizeof config);
    require(config.palette <= 1, "palette");
    require(config.start_row == 0, "start row");
    for (uint8_t byte : config.reserved) require(byte == 0, "reserved byte");
    for (int i = 0; i < 16; ++i) {
        require(i < 8 || (config.rows[i] == 0 && config.row_bytes[i] == 0), "no such tile", i);
        require(config.rows[i] <= 16 && config.row_bytes[i] <= 64, "too large", i);
        require((config.rows[i] == 0) == (config.row_bytes[i] == 0), "half of a size", i);
    }
    std::memset(&state, 0, sizeof state);
    state.config = config;
}

inline void store_config(void* to) { std::memcpy(to, &state.config, sizeof state.config); }

inline void release() { std::memset(&state, 0, sizeof state); }

inline TileRegister& tile_of(int i) {
    require(i >= 0 && i < 8, "no such tile", i);
    require(state.config.palette == 1, "used without a configuration", i);
    require(state.config.rows[i] > 0, "used without a size", i);
    return state.tiles[i];
}

inline void zero(int i) { std::memset(&tile_of(i), 0, sizeof(TileRegister)); }

inline void load(int i, const void* base, int64_t stride) {
    TileRegister& tile = tile_of(i);
    std::memset(&tile, 0, sizeof tile);
    for (int row = 0; row < state.config.rows[i]; ++row)
        std::memcpy(tile.bytes[row], static_cast<const uint8_t*>(base) + row * stride,
                    state.config.row_bytes[i]);
}

inline void store(int i, void* base, int64_t stride) {
    TileRegister& tile = tile_of(i);
    for (int row = 0; row < state.config.rows[i]; ++row)
        std::memcpy(static_cast<uint8_t*>(base) + row * stride, tile.bytes[row],
                    state.config.row_bytes[i]);
    tile.is_stored = true;
}

// C (M, N) int32 += A (M, 4 K) by B (K, 4 N), bytes of the types given.
template <class A, class B>
void multiply(int c, int a, int b) {
    TileRegister& sums = tile_of(c);
    const TileRegister &left = tile_of(a), &right = tile_of(b);
    const Config& config = state.config;
    require(c != a && c != b && a != b, "the same register twice", c);
    require(config.rows[c] == config.rows[a], "rows of C and A", c);
    require(config.row_bytes[c] == config.row_bytes[b], "columns of C and B", c);
    require(config.row_bytes[a] % 4 == 0 && config.row_bytes[a] / 4 == config.rows[b],
            "columns of A and rows of B", a);
    require(config.row_bytes[c] % 4 == 0, "columns of C", c);
    require(!sums.is_stored, "added to after it was stored", c);
    for (int m = 0; m < config.rows[c]; ++m)
        for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
            uint32_t sum;  // wraps, as the instruction does
            std::memcpy(&sum, &sums.bytes[m][4 * n], 4);
            for (int k = 0; k < config.rows[b]; ++k)
                for (int i = 0; i < 4; ++i)
                    sum += uint32_t(int32_t(A(left.bytes[m][4 * k + i])) *
                                    int32_t(B(right.bytes[k][4 * n + i])));
            std::memcpy(&sums.bytes[m][4 * n], &sum, 4);
        }
}

}  // namespace emulated

// In the place of the compiler's, whose names may be macros or functions.
#include <immintrin.h>
#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(from) emulated::load_config(from)
#define _tile_storeconfig(to) emulated::store_config(to)
#define _tile_release() emulated::release()
#define _tile_zero(i) emulated::zero(i)
#define _tile_loadd(i, base, stride) emulated::load(i, base, stride)
#define _tile_stored(i, base, stride) emulated::store(i, base, stride)
#define _tile_dpbssd(c, a, b) emulated::multiply<int8_t, int8_t>(c, a, b)
#define _tile_dpbsud(c, a, b) emulated::multiply<int8_t, uint8_t>(c, a, b)
#define _tile_dpbusd(c, a, b) emulated::multiply<uint8_t, int8_t>(c, a, b)
#define _tile_dpbuud(c, a, b) emulated::multiply<uint8_t, uint8_t>(c, a, b)
