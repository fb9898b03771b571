#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "processors.h"

/* Pixels are held in units of 2^-6, so that the overshoot of the filter fits in 16 bits; each product is rounded to
 * that unit, which for MAX_TAPS of them stays well below half a grey level. With integers only, every machine gives
 * the same image, whatever its vectors. */
#define UNIT_BITS 6

enum { LANES = 48 }; /* values that are computed together: of a strip's column, or of a row */

static double bicubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

static void quantise(const double *exact, int count, int16_t *weight) {
    double sum = 0;
    for (int k = 0; k < count; k++) sum += exact[k];
    const double unit = (1 << 15) / sum;
    int left = 1 << 15, largest = 0;
    for (int k = 0; k < count; k++) {
        double value = exact[k] * unit + (exact[k] < 0 ? -0.5 : 0.5);
        weight[k] = (int16_t)(value > INT16_MAX ? INT16_MAX : value);
        left -= weight[k];
        if (weight[k] > weight[largest]) largest = k;
    }
    /* The weights must sum to 1, so that a plain surface keeps its grey level. */
    if (weight[largest] + left <= INT16_MAX) weight[largest] = (int16_t)(weight[largest] + left);
}

/* The source pixels under the filter of an output pixel centred on `centre`, the last one excluded. */
static void reached(double centre, double reach, int limit, int *first, int *last) {
    *first = (int)(centre - reach + 0.5);
    *last = (int)(centre + reach + 0.5);
    if (*first < 0) *first = 0;
    if (*last > limit) *last = limit;
}

int make_taps(struct taps *taps, double from, double to, int limit, int size, int flip) {
    double scale = (to - from) / size, reach = 2 * (scale > 1 ? scale : 1);
    if (2 * reach + 1 > MAX_TAPS) return 1;
    taps->first = limit;
    taps->last = taps->count = 0;
    int first, last;
    for (int i = 0; i < size; i++) {
        reached(from + (i + 0.5) * scale, reach, limit, &first, &last);
        if (first < taps->first) taps->first = first;
        if (last > taps->last) taps->last = last;
        if (last - first > taps->count) taps->count = last - first;
    }
    taps->start = malloc((size_t)size * sizeof *taps->start);
    taps->weight = calloc((size_t)size * (size_t)taps->count, sizeof *taps->weight);
    if (!taps->start || !taps->weight) return -1;
    for (int i = 0; i < size; i++) {
        double centre = from + (i + 0.5) * scale, exact[MAX_TAPS];
        reached(centre, reach, limit, &first, &last);
        for (int k = 0; k < last - first; k++) exact[k] = bicubic((first + k - centre + 0.5) * 2 / reach);
        int place = flip ? size - 1 - i : i;
        /* A pixel with fewer taps that would reach beyond the last source pixel begins earlier, with weights of 0. */
        int start = first < taps->last - taps->count ? first : taps->last - taps->count;
        taps->start[place] = start;
        quantise(exact, last - first, taps->weight + (size_t)place * (size_t)taps->count + (first - start));
    }
    return 0;
}

void free_taps(struct taps *taps) {
    free(taps->start);
    free(taps->weight);
}

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

size_t strip_stride(int width, int channels) {
    /* In a grey strip, the lanes computed beyond the ones wanted belong to the next columns. */
    return round_up(((size_t)width + LANES / STRIP) * (size_t)channels, 32);
}

size_t half_stride(int size) { return round_up((size_t)size, LANES); }

typedef uint8_t sixteen __attribute__((vector_size(16)));

static inline sixteen zip_low(sixteen a, sixteen b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
    return __builtin_shuffle(a, b, (sixteen){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#endif
}

static inline sixteen zip_high(sixteen a, sixteen b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
    return __builtin_shuffle(a, b, (sixteen){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#endif
}

/* Zipping the two halves of a square, four times, transposes it. */
static inline __attribute__((always_inline)) void transpose(const uint8_t *in, size_t stride, sixteen square[16]) {
    sixteen other[16];
    for (int i = 0; i < 16; i++) memcpy(&square[i], in + (size_t)i * stride, 16);
#define ZIP(from, to)                                  \
    for (int i = 0; i < 8; i++) {                      \
        to[2 * i] = zip_low(from[i], from[i + 8]);     \
        to[2 * i + 1] = zip_high(from[i], from[i + 8]); \
    }
    ZIP(square, other)
    ZIP(other, square)
    ZIP(square, other)
    ZIP(other, square)
#undef ZIP
}

static inline void widen(sixteen levels, int16_t *restrict values) {
    for (int i = 0; i < 16; i++) values[i] = (int16_t)(levels[i] << UNIT_BITS);
}

/* The high half of twice the product, rounded, which the compiler turns into one instruction. */
static inline int16_t scaled(int16_t value, int16_t weight) {
    return (int16_t)((((value * weight) >> 14) + 1) >> 1);
}

static inline void add_scaled(int16_t sum[restrict 16], const int16_t *value, int16_t weight) {
    /* Otherwise the compiler unrolls the loop before it can vectorise it. */
#pragma GCC unroll 1
    for (int lane = 0; lane < 16; lane++) sum[lane] = (int16_t)(sum[lane] + scaled(value[lane], weight));
}

/* sum[lane] = value[k][lane] * weight[k] over all k; `step` values lie between value[k] and value[k + 1]. */
static inline __attribute__((always_inline)) void weigh(const int16_t *restrict value, size_t step,
                                                        const int16_t *restrict weight, int count,
                                                        int16_t sum[restrict LANES]) {
    /* Three variables, which the compiler keeps in registers: one array it would not. */
    int16_t a[16] = {0}, b[16] = {0}, c[16] = {0};
    for (int k = 0; k < count; k++, value += step) {
        add_scaled(a, value, weight[k]);
        add_scaled(b, value + 16, weight[k]);
        add_scaled(c, value + 32, weight[k]);
    }
    memcpy(sum, a, sizeof a);
    memcpy(sum + 16, b, sizeof b);
    memcpy(sum + 32, c, sizeof c);
}

static inline uint8_t grey_level(int16_t value) {
    int16_t level = (int16_t)((int16_t)(value + (1 << (UNIT_BITS - 1))) >> UNIT_BITS);
    level = (int16_t)(level > 0 ? level : 0);
    return (uint8_t)(level < 255 ? level : 255);
}

static inline __attribute__((always_inline)) void across(int channels, const int16_t *columns, int origin,
                                                         const struct taps *taps, int size, int16_t *half,
                                                         size_t stride, size_t plane) {
    /* In a grey strip, the lanes after the first 16 are the next columns, and are not used. */
    const size_t step = (size_t)channels * STRIP;
    for (int left = 0; left < size; left += 16) {
        uint8_t block[16][LANES];
        if (left + 16 > size) memset(block, 0, sizeof block);
        for (int x = left; x < left + 16 && x < size; x++) {
            int16_t sum[LANES];
            weigh(columns + (size_t)(taps->start[x] - origin) * step, step,
                  taps->weight + (size_t)x * (size_t)taps->count, taps->count, sum);
            for (int lane = 0; lane < LANES; lane++) block[x - left][lane] = grey_level(sum[lane]);
        }
        for (int c = 0; c < channels; c++) {
            sixteen square[16];
            transpose(block[0] + c * STRIP, sizeof block[0], square);
            for (int row = 0; row < STRIP; row++)
                widen(square[row], half + (size_t)c * plane + (size_t)row * stride + left);
        }
    }
}

FOR_EACH_PROCESSOR
void resize_across(const uint8_t *strip, int width, int channels, int origin, const struct taps *taps, int size,
                   int16_t *columns, int16_t *half, int rows, int row) {
    size_t stride = strip_stride(width, channels);
    for (size_t at = 0; at < stride; at += 16) {
        sixteen square[16];
        transpose(strip + at, stride, square);
        for (size_t i = 0; i < 16; i++) widen(square[i], columns + (at + i) * STRIP);
    }
    size_t plane = (size_t)rows * half_stride(size);
    int16_t *to = half + (size_t)row * half_stride(size);
    across(channels, columns, origin, taps, size, to, half_stride(size), plane);
}

FOR_EACH_PROCESSOR
void resize_down(const int16_t *half, int channels, int rows, int origin, const struct taps *taps, int size,
                 uint8_t *out) {
    size_t stride = half_stride(size);
    for (int c = 0; c < channels; c++)
        for (int y = 0; y < size; y++) {
            const int16_t *from = half + ((size_t)c * (size_t)rows + (size_t)(taps->start[y] - origin)) * stride;
            uint8_t *to = out + ((size_t)c * (size_t)size + (size_t)y) * (size_t)size;
            for (int left = 0; left < size; left += LANES) {
                int16_t sum[LANES];
                uint8_t level[LANES];
                weigh(from + left, stride, taps->weight + (size_t)y * (size_t)taps->count, taps->count, sum);
                for (int lane = 0; lane < LANES; lane++) level[lane] = grey_level(sum[lane]);
                memcpy(to + left, level, size - left < LANES ? (size_t)(size - left) : LANES);
            }
        }
}
