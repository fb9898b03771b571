#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Pixels are held in units of 2^-6, so that the overshoot of the filter fits in 16 bits; each product is rounded to
 * that unit, which for MAX_TAPS of them stays well below half a grey level. Integers alone: every machine, whatever
 * its vectors, gives the same image. */
#define UNIT_BITS 6

enum { LANES = 32 }; /* columns that are resized down together */

/* The compiler makes a variant for each of these processors, and the loader picks one. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

static double bicubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

static void quantise(const double *exact, int count, int16_t *weight) {
    double sum = 0;
    for (int k = 0; k < count; k++) sum += exact[k];
    int left = 1 << 15, largest = 0;
    for (int k = 0; k < count; k++) {
        double value = exact[k] / sum * (1 << 15);
        weight[k] = (int16_t)(value > INT16_MAX ? INT16_MAX : lrint(value));
        left -= weight[k];
        if (weight[k] > weight[largest]) largest = k;
    }
    /* So that a plain surface keeps its grey level. */
    if (weight[largest] + left <= INT16_MAX) weight[largest] = (int16_t)(weight[largest] + left);
}

int make_taps(struct taps *taps, double from, double to, int limit, int size, int flip) {
    double scale = (to - from) / size, reach = 2 * (scale > 1 ? scale : 1);
    if (2 * ceil(reach) + 1 > MAX_TAPS) return 1;
    taps->count = 2 * (int)ceil(reach) + 1;
    taps->start = malloc((size_t)size * sizeof *taps->start);
    taps->weight = calloc((size_t)size * (size_t)taps->count, sizeof *taps->weight);
    if (!taps->start || !taps->weight) return -1;
    taps->first = limit;
    taps->last = 0;
    for (int i = 0; i < size; i++) {
        double centre = from + (i + 0.5) * scale, exact[MAX_TAPS];
        int first = (int)(centre - reach + 0.5), last = (int)(centre + reach + 0.5);
        if (first < 0) first = 0;
        if (last > limit) last = limit;
        for (int k = 0; k < last - first; k++) exact[k] = bicubic((first + k - centre + 0.5) * 2 / reach);
        int place = flip ? size - 1 - i : i;
        taps->start[place] = first;
        quantise(exact, last - first, taps->weight + (size_t)place * (size_t)taps->count);
        if (first < taps->first) taps->first = first;
        if (last > taps->last) taps->last = last;
    }
    return 0;
}

void free_taps(struct taps *taps) {
    free(taps->start);
    free(taps->weight);
}

static size_t to_lanes(size_t n) { return (n + LANES - 1) / LANES * LANES; }

size_t strip_stride(int width, int channels) {
    /* The taps of the last pixels may end beyond the row, with weight 0. */
    return to_lanes(((size_t)width + MAX_TAPS) * (size_t)channels);
}

size_t half_stride(int size) { return to_lanes((size_t)size); }

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

/* The high half of twice the product, rounded: the compiler knows it as one instruction. */
static inline int16_t scaled(int16_t value, int16_t weight) {
    return (int16_t)((((value * weight) >> 14) + 1) >> 1);
}

static inline uint8_t to_grey_level(int16_t value) {
    int level = (value + (1 << (UNIT_BITS - 1))) >> UNIT_BITS;
    return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

static inline __attribute__((always_inline)) void across(int channels, const int16_t *columns, int origin,
                                                         const struct taps *taps, int size, uint8_t *half,
                                                         size_t stride, size_t plane) {
    const int lanes = channels * STRIP;
    for (int left = 0; left < size; left += 16) {
        uint8_t block[3][16][STRIP] = {0};
        for (int x = left; x < left + 16 && x < size; x++) {
            const int16_t *column = columns + (size_t)(taps->start[x] - origin) * (size_t)lanes;
            const int16_t *weight = taps->weight + (size_t)x * (size_t)taps->count;
            int16_t sum[3 * STRIP] = {0};
            for (int k = 0; k < taps->count; k++)
                for (int lane = 0; lane < lanes; lane++)
                    sum[lane] = (int16_t)(sum[lane] + scaled(column[k * lanes + lane], weight[k]));
            for (int c = 0; c < channels; c++)
                for (int row = 0; row < STRIP; row++) block[c][x - left][row] = to_grey_level(sum[c * STRIP + row]);
        }
        for (int c = 0; c < channels; c++) {
            sixteen square[16];
            transpose(block[c][0], STRIP, square);
            for (int row = 0; row < STRIP; row++)
                memcpy(half + (size_t)c * plane + (size_t)row * stride + left, &square[row], 16);
        }
    }
}

FOR_EACH_PROCESSOR
void resize_across(const uint8_t *strip, int width, int channels, int origin, const struct taps *taps, int size,
                   int16_t *columns, uint8_t *half, int rows, int row) {
    size_t stride = strip_stride(width, channels);
    for (size_t at = 0; at < stride; at += 16) {
        sixteen square[16];
        transpose(strip + at, stride, square);
        int16_t *column = columns + at * STRIP;
        for (int i = 0; i < 16; i++)
            for (int lane = 0; lane < STRIP; lane++)
                column[i * STRIP + lane] = (int16_t)(square[i][lane] << UNIT_BITS);
    }
    size_t plane = (size_t)rows * half_stride(size);
    uint8_t *to = half + (size_t)row * half_stride(size);
    if (channels == 3)
        across(3, columns, origin, taps, size, to, half_stride(size), plane);
    else
        across(1, columns, origin, taps, size, to, half_stride(size), plane);
}

FOR_EACH_PROCESSOR
void resize_down(const uint8_t *half, int channels, int rows, int origin, const struct taps *taps, int size,
                 uint8_t *out) {
    size_t stride = half_stride(size);
    for (int c = 0; c < channels; c++)
        for (int y = 0; y < size; y++) {
            const uint8_t *from = half + ((size_t)c * (size_t)rows + (size_t)(taps->start[y] - origin)) * stride;
            const int16_t *weight = taps->weight + (size_t)y * (size_t)taps->count;
            uint8_t *to = out + ((size_t)c * (size_t)size + (size_t)y) * (size_t)size;
            for (int left = 0; left < size; left += LANES) {
                int16_t sum[LANES] = {0};
                uint8_t level[LANES];
                for (int k = 0; k < taps->count; k++)
                    for (int lane = 0; lane < LANES; lane++)
                        sum[lane] = (int16_t)(sum[lane] + scaled((int16_t)(from[(size_t)k * stride + (size_t)(left + lane)]
                                                                           << UNIT_BITS),
                                                                 weight[k]));
                for (int lane = 0; lane < LANES; lane++) level[lane] = to_grey_level(sum[lane]);
                memcpy(to + left, level, size - left < LANES ? (size_t)(size - left) : LANES);
            }
        }
}
