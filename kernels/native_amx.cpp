// The AMX level: products of 16 tokens by 16 columns by 64 channels, TDPB* on bytes (amx-tile,
// amx-int8), from kTilesFrom tokens on. Fewer tokens and float32 go to the AVX-512 VNNI level.
//
// int16: x = 256 high + low, a plane of signed and one of unsigned bytes, each multiplied by the
//        codes. Both sums, and 256 times the first plus the second, are exact in int32, so y is
//        bit by bit that of the VNNI level.
// Codes of 4 bits become signed bytes q - z as they are unpacked; of codes of 8 bits the product
// z sum_k x_k is taken off afterwards.
//
// Tile registers: 0 to 3 hold the sums of two tiles of activations (4, 5: the planes of a token,
// or other tokens) by two of codes (6, 7: blocks of 16 columns): four products for four loads.
// A product's sums are scaled while the tiles work on the next one. Unpacked codes of 256 channels,
// 16 KiB, stay in L1 while all tokens pass; then y is read and written once for 256 channels.
//
// The tile configuration is loaded for each panel and given back: other users of a thread (oneDNN,
// ggml) do as they like with it in between.
//
// There is no bfloat16 product: against int16 it would save a quarter of the time and lose two
// digits (2.5e-3), and int8 is faster with an error of the same order.
//
// Proven with emulated tiles (tests/gemm/emulated_tiles.h) and as machine code only: no processor
// with AMX has run it, and nothing here is tuned.
//
// With AWQ_EMULATE_TILES the tile instructions are functions of emulated_tiles.h.
#include "native_amx.h"

#if defined(AWQ_EMULATE_TILES)
#include "emulated_tiles.h"
#endif
#include <immintrin.h>

extern const Level kAvx512Level;

namespace {

#include "native_avx512.h"

#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"

// From here on the arithmetic of VNNI takes longer than reading the weights, by their peaks; not
// measured on hardware.
constexpr int64_t kTilesFrom = 8;
constexpr int kTile = 16;  // rows of a tile
constexpr int64_t kChannelsAtOnce = 256, kPiecesAtOnce = 8;

// What ldtilecfg reads: palette 1 has 8 tiles of at most 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as ldtilecfg reads it");

// Tile loads and ldtilecfg read memory that GCC 12 does not know of: without this it drops the
// stores before them.
inline void finish_stores(const void* written) {
    asm volatile("" : : "r"(written) : "memory");
}

// Sums of `tokens` rows and blocks of 16 columns over pieces of `depth * steps` channels.
TileConfig make_config(int tokens, int depth) {
    TileConfig config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = uint8_t(i < 6 ? tokens : depth / 4);
        config.row_bytes[i] = uint16_t(i == 4 || i == 5 ? depth : 64);
    }
    return config;
}

// Holds a configuration; puts back the one that was there, or none.
class Configured {
    TileConfig before_ = {};

   public:
    explicit Configured(const TileConfig& config) {
        finish_stores(&before_);
        _tile_storeconfig(&before_);
        finish_stores(&config);
        _tile_loadconfig(&config);
    }
    ~Configured() {
        finish_stores(&before_);
        if (before_.palette != 0)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;
};

// Where the two tiles of activations, or of codes, begin; and bytes between rows.
struct Sources {
    const void* first;
    const void* second;
    int64_t stride;
};

// The sums that one round of tiles gives, and what turns them into y.
struct Product {
    const Header* header;
    const float* steps[2];   // of each tile of tokens
    const int32_t* sums[2];
    float* y[2];             // (rows, kPanel)
    int first_row[2];        // rows before it were added by the tile before
    int rows, block, n_blocks, n_tiles;
};

using Results = int32_t[4][kTile * kTile];

template <int ACTIVATIONS, bool SIGNED>
struct TileKernel {
    static constexpr bool PLANES = ACTIVATIONS == kInt16;

    // Registers are constants in the instructions, so each is written out.
    template <bool TWO_A, bool TWO_B>
    static inline void multiply(const Sources& a, const Sources& b, int depth, int steps) {
        _tile_zero(0);
        if (TWO_B) _tile_zero(1);
        if (TWO_A) _tile_zero(2);
        if (TWO_A && TWO_B) _tile_zero(3);
        for (int i = 0; i < steps; ++i) {
            const int64_t at = int64_t(i) * depth, row = at / 4 * b.stride;
            _tile_loadd(4, static_cast<const uint8_t*>(a.first) + at, a.stride);
            _tile_loadd(6, static_cast<const uint8_t*>(b.first) + row, b.stride);
            if (TWO_B) _tile_loadd(7, static_cast<const uint8_t*>(b.second) + row, b.stride);
            if (TWO_A) _tile_loadd(5, static_cast<const uint8_t*>(a.second) + at, a.stride);
            if (SIGNED) {
                _tile_dpbssd(0, 4, 6);
                if (TWO_B) _tile_dpbssd(1, 4, 7);
            } else {
                _tile_dpbsud(0, 4, 6);
                if (TWO_B) _tile_dpbsud(1, 4, 7);
            }
            if (!TWO_A) continue;
            if (PLANES && SIGNED) {
                _tile_dpbusd(2, 5, 6);
                if (TWO_B) _tile_dpbusd(3, 5, 7);
            } else if (PLANES) {
                _tile_dpbuud(2, 5, 6);
                if (TWO_B) _tile_dpbuud(3, 5, 7);
            } else if (SIGNED) {
                _tile_dpbssd(2, 5, 6);
                if (TWO_B) _tile_dpbssd(3, 5, 7);
            } else {
                _tile_dpbsud(2, 5, 6);
                if (TWO_B) _tile_dpbsud(3, 5, 7);
            }
        }
    }

    static inline void start(const Product& p, const Sources& a, const Sources& b, int depth,
                             int steps) {
        const bool two_a = PLANES || p.n_tiles == 2, two_b = p.n_blocks == 2;
        if (two_a && two_b) return multiply<true, true>(a, b, depth, steps);
        if (two_a) return multiply<true, false>(a, b, depth, steps);
        if (two_b) return multiply<false, true>(a, b, depth, steps);
        multiply<false, false>(a, b, depth, steps);
    }

    static inline void store(const Product& p, Results& results) {
        const bool two_a = PLANES || p.n_tiles == 2, two_b = p.n_blocks == 2;
        _tile_stored(0, results[0], 64);
        if (two_b) _tile_stored(1, results[1], 64);
        if (two_a) _tile_stored(2, results[2], 64);
        if (two_a && two_b) _tile_stored(3, results[3], 64);
    }

    static inline void add(const Product& p, const Results& results) {
        for (int tile = 0; tile < p.n_tiles; ++tile)
            for (int b = 0; b < p.n_blocks; ++b) add_block(p, results, tile, b);
    }

    static inline void add_block(const Product& p, const Results& results, int tile, int b) {
        const int column = (p.block + b) * kBlock;
        const V::F scale = V::loadf(p.header->scales + column);
        const V::I zero = V::load(p.header->zeros + column);
        for (int row = p.first_row[tile]; row < p.rows; ++row) {
            V::I sum = V::load(results[2 * tile + b] + row * kTile);
            if (PLANES)
                sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
                                       V::load(results[2 + b] + row * kTile));
            if (!SIGNED) sum = V::sub32(sum, V::mul32(zero, V::seti(p.sums[tile][row])));
            float* at = p.y[tile] + row * kPanel + column;
            const V::F value = V::mul(V::tofloat(sum), V::setf(p.steps[tile][row]));
            V::storef(at, V::fma(value, scale, V::loadf(at)));
        }
    }
};

// Bytes of the codes of a piece, (blocks, unit / 4, 64), less the zero point where of 4 bits.
template <bool SIGNED>
void unpack_piece(const uint8_t* codes, const Header& header, int64_t blocks, int64_t unit,
                  uint8_t* out) {
    const V::I mask = V::seti(0x0f0f0f0f);
    for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* at = codes + b * 64;
        // Four times the byte: zero points of 4 bits do not carry.
        const V::I zero = V::mul32(V::load(header.zeros + b * kBlock), V::seti(0x01010101));
        for (int64_t row = 0; row < unit / (SIGNED ? 8 : 4); ++row, at += blocks * 64) {
            V::prefetch(at + V::prefetch_bytes);
            const V::I raw = V::load(at);
            if (SIGNED) {
                const V::I low = V::band(raw, mask), high = V::band(V::shift16<4>(raw), mask);
                V::store(out, _mm512_sub_epi8(low, zero));
                V::store(out + 64, _mm512_sub_epi8(high, zero));
            } else {
                V::store(out, raw);
            }
            out += SIGNED ? 128 : 64;
        }
    }
}

// The tokens of a job in tiles of as many rows each; the last one begins early enough to be full.
struct Rows {
    int64_t count, tiles;
    int rows;

    explicit Rows(int64_t m) : count(m), tiles((m + kTile - 1) / kTile) {
        rows = int((m + tiles - 1) / tiles);
    }
    int64_t begin(int64_t tile) const { return tile < tiles - 1 ? tile * rows : count - rows; }
    int overlap(int64_t tile) const { return int(tile * rows - begin(tile)); }
};

template <int ACTIVATIONS, bool SIGNED>
void multiply_panel(const PanelJob& job) {
    using Kernel = TileKernel<ACTIVATIONS, SIGNED>;
    const Weight& w = *job.weight;
    const Tokens& tokens = *job.tokens;
    const int64_t m = job.stop - job.first, parts = tokens.parts, unit = w.unit / parts;
    const int64_t pieces = w.n_chunks * parts, step = chunk_bytes(w, job.blocks);
    const int64_t most = kChannelsAtOnce / unit < kPiecesAtOnce ? kChannelsAtOnce / unit
                                                                : kPiecesAtOnce;
    const int64_t row_bytes = unit * (Kernel::PLANES ? 2 : 1), piece_bytes = unit * kPanel;
    // A tile holds 64 channels; pieces are multiples of 8, so halves can be tiles.
    const int steps = unit > 64 ? 2 : 1, depth = int(unit) / steps;
    const Rows tiles(m);
    uint8_t* codes = static_cast<uint8_t*>(job.scratch);
    const uint8_t* values = static_cast<const uint8_t*>(tokens.values);
    Header headers[kPiecesAtOnce] = {};
    alignas(64) Results results;
    Product pending = {};
    std::memset(job.sums, 0, size_t(m) * kPanel * sizeof(float));
    const Configured configured(make_config(tiles.rows, depth));

    for (int64_t first = 0; first < pieces; first += most) {
        const int64_t n = pieces - first < most ? pieces - first : most;
        // What is pending needs its header.
        Kernel::add(pending, results);
        pending = {};
        for (int64_t i = 0; i < n; ++i) {
            const int64_t part = (first + i) % parts;
            const uint8_t* chunk = job.panel + (first + i) / parts * step;
            read_header(w, chunk, job.blocks, headers[i]);
            unpack_piece<SIGNED>(chunk + part * (job.blocks * code_bytes(w) / parts), headers[i],
                                 job.blocks, unit, codes + i * piece_bytes);
        }
        finish_stores(codes);
        const int64_t abreast = Kernel::PLANES ? 1 : 2;
        for (int64_t tile = 0; tile < tiles.tiles; tile += abreast) {
            for (int64_t i = 0; i < n; ++i) {
                const int64_t at = (first + i) * tokens.count + job.first;
                Product p = {};
                p.header = &headers[i];
                p.rows = tiles.rows;
                p.n_tiles = int(tiles.tiles - tile < abreast ? tiles.tiles - tile : abreast);
                for (int t = 0; t < p.n_tiles; ++t) {
                    const int64_t row = tiles.begin(tile + t);
                    p.steps[t] = tokens.steps + at + row;
                    p.sums[t] = tokens.sums + at + row;
                    p.y[t] = job.sums + row * kPanel;
                    p.first_row[t] = tiles.overlap(tile + t);
                }
                const uint8_t* x = values + (at + tiles.begin(tile)) * row_bytes;
                const uint8_t* other = x + unit;  // the plane of low bytes
                if (!Kernel::PLANES && p.n_tiles == 2)
                    other = values + (at + tiles.begin(tile + 1)) * row_bytes;
                for (p.block = 0; p.block < job.blocks; p.block += 2) {
                    p.n_blocks = job.blocks - p.block < 2 ? 1 : 2;
                    const uint8_t* b = codes + i * piece_bytes + p.block * unit * kBlock;
                    Kernel::start(p, {x, other, row_bytes}, {b, b + unit * kBlock, 64}, depth,
                                  steps);
                    // While the tiles work.
                    Kernel::add(pending, results);
                    Kernel::store(p, results);
                    pending = p;
                }
            }
        }
    }
    Kernel::add(pending, results);
}

template <int ACTIVATIONS>
void tile_panel(const PanelJob& job) {
    if (job.tokens->count < kTilesFrom) return kAvx512Level.panel[ACTIVATIONS](job);
    if (job.weight->code_bits == 4) return multiply_panel<ACTIVATIONS, true>(job);
    multiply_panel<ACTIVATIONS, false>(job);
}

void exact_panel_of_avx512(const PanelJob& job) { kAvx512Level.panel[kExact](job); }

void quantize_int16(const QuantizeJob& job) {
    if (job.count < kTilesFrom) return quantize<kInt16Limit, kPairs>(job);
    quantize<kInt16Limit, kPlanes>(job);
}

}  // namespace

bool amx_multiplies() {
    alignas(64) const int8_t values[64] = {1, -2, 3, 4};
    alignas(64) int32_t sum[16];
    {
        finish_stores(values);
        const Configured configured(make_config(1, 4));
        _tile_zero(0);
        _tile_loadd(4, values, 64);
        _tile_loadd(6, values, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, sum, 64);
    }
    return sum[0] == 1 + 4 + 9 + 16 && sum[1] == 0;
}

extern const Level kAmxLevel;
const Level kAmxLevel = {
    "amx-int8",
    write_row,
    {tile_panel<kInt16>, exact_panel_of_avx512, tile_panel<kInt8>},
    {quantize_int16, copy_exact, quantize<127, kBytes>},
};
