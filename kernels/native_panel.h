// Panel products for any vector type V: a panel of 64 columns times some tokens.
//
// Included by each native_<level>.cpp inside its anonymous namespace, after its type V, so that
// code made for one instruction set is never linked into another.
//
// int16: y += scale step (sum_k x_k (q_k - z)), the bracket exact in int32 (at most
//        128 * 255 * kInt16Limit < 2^31), so that a group of zeros gives exactly 0.
// int8:  the same with bytes: sum_k q_k x_k - z sum_k x_k.
// exact: float32 products of float32 activations with q - z, which is exact in float32.
//
// The first tile of tokens unpacks codes, uses them from registers and, where there are other
// tiles, leaves them in scratch for those. (Unpacking in each tile again costs the same up to 30
// tokens and 6 % more at 500.)
//
// V has `lanes` of 32 bits in its types I and F, a tile of `rows` tokens by `cols` vectors
// (`unpack_rows` tokens where it unpacks; other kernels may have other tiles), `prefetch_bytes`,
// and the operations used below; HAS_QUADS says that `quads` is among them,
// WITHOUT_PAIRS that `pairs` is not.

constexpr int kVectors = kPanel / V::lanes;  // in a row of a panel
constexpr int kPerBlock = kBlock / V::lanes;

struct Header {  // of a chunk, by column of the panel
    alignas(64) float scales[kPanel];
    alignas(64) int32_t zeros[kPanel];
    alignas(64) int32_t zero_pairs[kPanel];  // the zero point in both halves
};

void read_header(const Weight& w, const uint8_t* chunk, int64_t blocks, Header& out) {
    const uint8_t* scales = chunk + blocks * code_bytes(w);
    const uint8_t* zeros = scales + blocks * kBlock * scale_bytes(w);
    const int n = int(blocks) * kBlock;
    V::read_scales(scales, n, w.scale_type, out.scales);
    for (int c = 0; c < n; ++c) {
        const int32_t zero = zeros[c];
        out.zeros[c] = zero;
        out.zero_pairs[c] = zero | zero << 16;
    }
}

// A tile of tokens: what it reads and where it adds.
struct Tile {
    const uint8_t* chunk;
    const Header* header;
    void* scratch;       // unpacked codes, (unit * kPanel) of int16, bytes or floats
    const void* x;       // its first token in this chunk
    const float* steps;  // by token
    const int32_t* sums; // by token
    float* y;            // (tokens, kPanel)
    int64_t unit;
    int64_t row_bytes;   // between rows of codes
    int32_t code_bits;   // in the stream
    int64_t offsets[4];  // of the blocks in a row; the last one again where there are fewer
};

// Bytes of vector v (of 4 bytes a lane) of a row of codes.
inline const uint8_t* row_at(const Tile& t, int v, int64_t row) {
    return t.chunk + t.offsets[v / kPerBlock] + row * t.row_bytes + (v % kPerBlock) * V::lanes * 4;
}

// Where codes come from: BITS 0 reads them unpacked from scratch; 4 and 8 unpack them, and leave
// them in scratch if KEEP.
template <int BITS_, bool KEEP_>
struct Source {
    static constexpr int BITS = BITS_;
    static constexpr bool KEEP = KEEP_;
    static constexpr bool FROM_ROWS = BITS_ != 0;
    static constexpr int STEPS = BITS_ == 4 ? 2 : 1;  // of four channels for each turn of a loop
};

struct PairKernel {
    static constexpr int rows = V::rows, unpack_rows = V::unpack_rows;

#if !defined(WITHOUT_PAIRS)
    // A vector of pairs of codes as int16: channels (0, 2) or (1, 3) of four, for PART 0 or 1.
    // Less the zero point where they are kept; where not, -z sum_k x_k is added once a piece.
    template <class S, int PART>
    static inline V::I codes(const Tile& t, int v, int64_t row, int step) {
        V::I* kept = static_cast<V::I*>(t.scratch) +
                     ((row * S::STEPS + step) * 2 + PART) * kVectors + v;
        if (!S::FROM_ROWS) return V::load(kept);
        const uint8_t* at = row_at(t, v, row);
        if (step == 0 && PART == 0) V::prefetch(at + V::prefetch_bytes);
        const V::I raw = V::load(at);
        const V::I mask = V::seti(S::BITS == 4 ? 0x000f000f : 0x00ff00ff);
        V::I pairs;
        if (PART == 0)
            pairs = V::band(step ? V::template shift16<4>(raw) : raw, mask);
        else if (S::BITS == 8)
            pairs = V::template shift16<8>(raw);
        else if (step)
            pairs = V::template shift16<12>(raw);
        else
            pairs = V::band(V::template shift16<8>(raw), mask);
        if (S::KEEP) {
            pairs = V::sub16(pairs, V::load(t.header->zero_pairs + v * V::lanes));
            V::store(kept, pairs);
        }
        return pairs;
    }

    // Only one row of vectors of codes is alive at a time: the accumulators need the registers.
    template <class S, int MR, int PART>
    static inline void multiply(const Tile& t, int v0, int64_t row, int step, const int16_t* x,
                                V::I acc[MR][V::cols]) {
        V::I b[V::cols];
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) b[v] = codes<S, PART>(t, v0 + v, row, step);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
            const V::I a = V::broadcast(x + i * t.unit + 2 * PART);
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) acc[i][v] = V::pairs(acc[i][v], b[v], a);
        }
    }

    template <class S, int MR>
    __attribute__((noinline)) static void tile(const Tile& given, int v0) {
        const Tile t = given;  // a copy that no store can change: its fields stay in registers
        V::I acc[MR][V::cols];
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) {
            const V::I zero = V::load(t.header->zeros + (v0 + v) * V::lanes);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i)
                acc[i][v] = S::FROM_ROWS && !S::KEEP ? V::mul32(zero, V::seti(-t.sums[i]))
                                                     : V::zero();
        }
        const int16_t* x = static_cast<const int16_t*>(t.x);
        for (int64_t row = 0; row < t.unit / (4 * S::STEPS); ++row) {
#pragma GCC unroll 2
            for (int step = 0; step < S::STEPS; ++step) {
                multiply<S, MR, 0>(t, v0, row, step, x, acc);
                multiply<S, MR, 1>(t, v0, row, step, x, acc);
                x += 4;
            }
        }
        add<MR>(t, v0, acc);
    }

#endif

    template <int MR>
    static inline void add(const Tile& t, int v0, V::I acc[MR][V::cols]) {
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) {
            const V::F scale = V::loadf(t.header->scales + (v0 + v) * V::lanes);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i) {
                float* at = t.y + i * kPanel + (v0 + v) * V::lanes;
                // The step first: it alone brings a sum of large integers back into range.
                const V::F value = V::mul(V::tofloat(acc[i][v]), V::setf(t.steps[i]));
                V::storef(at, V::fma(value, scale, V::loadf(at)));
            }
        }
    }
};

#if defined(HAS_QUADS)
struct QuadKernel {
    static constexpr int rows = V::rows, unpack_rows = V::unpack_rows;

    // Four bytes of codes for each column.
    template <class S>
    static inline V::I codes(const Tile& t, int v, int64_t row, int step) {
        V::I* kept = static_cast<V::I*>(t.scratch) + (row * S::STEPS + step) * kVectors + v;
        if (!S::FROM_ROWS) return V::load(kept);
        const uint8_t* at = row_at(t, v, row);
        if (step == 0) V::prefetch(at + V::prefetch_bytes);
        V::I bytes = V::load(at);
        if (S::BITS == 4)
            bytes = V::band(step ? V::template shift16<4>(bytes) : bytes, V::seti(0x0f0f0f0f));
        if (S::KEEP) V::store(kept, bytes);
        return bytes;
    }

    template <class S, int MR>
    __attribute__((noinline)) static void tile(const Tile& given, int v0) {
        const Tile t = given;
        V::I acc[MR][V::cols];
        // - z sum_k x_k, as a pair product with 0 in the upper half: both fit int16.
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) {
            const V::I zero = V::load(t.header->zeros + (v0 + v) * V::lanes);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i)
                acc[i][v] = V::pairs(V::zero(), zero, V::seti(-t.sums[i] & 0xffff));
        }
        const int8_t* x = static_cast<const int8_t*>(t.x);
        for (int64_t row = 0; row < t.unit / (4 * S::STEPS); ++row) {
#pragma GCC unroll 2
            for (int step = 0; step < S::STEPS; ++step) {
                V::I b[V::cols];
#pragma GCC unroll 16
                for (int v = 0; v < V::cols; ++v) b[v] = codes<S>(t, v0 + v, row, step);
#pragma GCC unroll 16
                for (int i = 0; i < MR; ++i) {
                    const V::I a = V::broadcast(x + i * t.unit);
#pragma GCC unroll 16
                    for (int v = 0; v < V::cols; ++v) acc[i][v] = V::quads(acc[i][v], b[v], a);
                }
                x += 4;
            }
        }
        PairKernel::add<MR>(t, v0, acc);
    }
};
#endif

struct FloatKernel {
    static constexpr int rows = V::rows, unpack_rows = V::unpack_rows;

    // Channel PART of four, less the zero point.
    template <class S, int PART>
    static inline V::F codes(const Tile& t, int v, int64_t row, int step) {
        float* kept = static_cast<float*>(t.scratch) +
                      (((row * S::STEPS + step) * 4 + PART) * kVectors + v) * V::lanes;
        if (!S::FROM_ROWS) return V::loadf(kept);
        const uint8_t* at = row_at(t, v, row);
        if (step == 0 && PART == 0) V::prefetch(at + V::prefetch_bytes);
        constexpr int LOW = 8 * PART;
        const V::I raw = V::load(at);
        const V::I shifted = step ? V::template shift<LOW + 4>(raw) : V::template shift<LOW>(raw);
        const V::I code = V::band(shifted, V::seti(S::BITS == 4 ? 0xf : 0xff));
        const V::F value =
            V::tofloat(V::sub32(code, V::load(t.header->zeros + v * V::lanes)));
        if (S::KEEP) V::storef(kept, value);
        return value;
    }

    template <class S, int MR, int PART>
    static inline void multiply(const Tile& t, int v0, int64_t row, int step, const float* x,
                                V::F acc[MR][V::cols]) {
        V::F b[V::cols];
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) b[v] = codes<S, PART>(t, v0 + v, row, step);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
            const V::F a = V::setf(x[i * t.unit + PART]);
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) acc[i][v] = V::fma(a, b[v], acc[i][v]);
        }
    }

    template <class S, int MR>
    __attribute__((noinline)) static void tile(const Tile& given, int v0) {
        const Tile t = given;
        V::F acc[MR][V::cols];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) acc[i][v] = V::setf(0);
        const float* x = static_cast<const float*>(t.x);
        for (int64_t row = 0; row < t.unit / (4 * S::STEPS); ++row) {
#pragma GCC unroll 2
            for (int step = 0; step < S::STEPS; ++step) {
                multiply<S, MR, 0>(t, v0, row, step, x, acc);
                multiply<S, MR, 1>(t, v0, row, step, x, acc);
                multiply<S, MR, 2>(t, v0, row, step, x, acc);
                multiply<S, MR, 3>(t, v0, row, step, x, acc);
                x += 4;
            }
        }
#pragma GCC unroll 16
        for (int v = 0; v < V::cols; ++v) {
            const V::F scale = V::loadf(t.header->scales + (v0 + v) * V::lanes);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i) {
                float* at = t.y + i * kPanel + (v0 + v) * V::lanes;
                V::storef(at, V::fma(acc[i][v], scale, V::loadf(at)));
            }
        }
    }
};

// Call the tile of `rows` tokens: 1 to MR.
template <class Kernel, class S, int MR>
inline void call_tile(const Tile& t, int v0, int64_t rows) {
    if (rows == MR) return Kernel::template tile<S, MR>(t, v0);
    if constexpr (MR > 1) call_tile<Kernel, S, MR - 1>(t, v0, rows);
}

// The first tile; where others follow it has all its rows.
template <class Kernel, int BITS>
inline void first_tile(const Tile& t, int v0, int64_t rows, bool keep) {
    if (keep) return Kernel::template tile<Source<BITS, true>, Kernel::unpack_rows>(t, v0);
    call_tile<Kernel, Source<BITS, false>, Kernel::unpack_rows>(t, v0, rows);
}

// Element: of the tokens' values.
template <class Kernel, class Element>
void panel(const PanelJob& job) {
    const Weight& w = *job.weight;
    const int64_t m = job.stop - job.first, count = job.tokens->count;
    const int64_t step = chunk_bytes(w, job.blocks);
    // The tile that unpacks is a row shorter: it needs registers for that.
    const int64_t lead = m < Kernel::unpack_rows ? m : Kernel::unpack_rows, rest = m - lead;
    const int64_t n_tiles = (rest + Kernel::rows - 1) / Kernel::rows;
    const int live = int(job.blocks) * kPerBlock;  // vectors of columns
    const Element* values = static_cast<const Element*>(job.tokens->values);
    const float* steps = job.tokens->steps;
    const int32_t* sums = job.tokens->sums;
    std::memset(job.sums, 0, size_t(m) * kPanel * sizeof(float));
    Header header = {};
    const int64_t parts = job.tokens->parts, unit = w.unit / parts;
    Tile t = {};
    t.header = &header;
    t.scratch = job.scratch;
    t.unit = unit;
    t.row_bytes = job.blocks * 64;
    t.code_bits = w.code_bits;
    for (int64_t b = 0; b < 4; ++b) t.offsets[b] = (b < job.blocks ? b : job.blocks - 1) * 64;
    for (int64_t piece = 0; piece < w.n_chunks * parts; ++piece) {
        const uint8_t* chunk = job.panel + piece / parts * step;
        const int64_t part = piece % parts;
        if (part == 0) read_header(w, chunk, job.blocks, header);
        t.chunk = chunk + part * (job.blocks * code_bytes(w) / parts);
        for (int v0 = 0; v0 < live; v0 += V::cols) {
            int64_t row = 0;
            for (int64_t i = -1; i < n_tiles; ++i) {
                const int64_t rows = i < 0 ? lead : rest / n_tiles + (i < rest % n_tiles);
                const int64_t at = piece * count + job.first + row;
                t.x = values + at * unit;
                t.steps = steps ? steps + at : nullptr;
                t.sums = sums ? sums + at : nullptr;
                t.y = job.sums + row * kPanel;
                if (i >= 0)
                    call_tile<Kernel, Source<0, false>, Kernel::rows>(t, v0, rows);
                else if (w.code_bits == 4)
                    first_tile<Kernel, 4>(t, v0, rows, n_tiles > 0);
                else
                    first_tile<Kernel, 8>(t, v0, rows, n_tiles > 0);
                row += rows;
            }
        }
    }
}
