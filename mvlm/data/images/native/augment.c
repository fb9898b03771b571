#include "augment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "processors.h"

enum { GREY = 128, TILE = 32, BITS = 16 };

/* Transpose a plane; `stride` is that of `out`. */
static void transpose(const uint8_t *plane, size_t n, uint8_t *out, size_t stride) {
    for (size_t top = 0; top < n; top += TILE)
        for (size_t left = 0; left < n; left += TILE)
            for (size_t y = top; y < top + TILE && y < n; y++)
                for (size_t x = left; x < left + TILE && x < n; x++) out[y * stride + x] = plane[x * n + y];
}

/* Copy a plane, perhaps transposed, and repeat its outermost pixels around it. */
static void add_border(const uint8_t *plane, int size, int transposed, uint8_t *padded) {
    size_t n = (size_t)size, stride = n + 2;
    uint8_t *inner = padded + stride + 1;
    if (transposed)
        transpose(plane, n, inner, stride);
    else
        for (size_t y = 0; y < n; y++) memcpy(inner + y * stride, plane + y * n, n);
    for (size_t y = 0; y < n; y++) {
        inner[y * stride - 1] = inner[y * stride];
        inner[y * stride + n] = inner[y * stride + n - 1];
    }
    memcpy(padded, padded + stride, stride);
    memcpy(padded + (n + 1) * stride, padded + n * stride, stride);
}

/* Move each row by slope * (y + 1/2) + shift pixels. */
FOR_EACH_PROCESSOR
static void move_rows(const uint8_t *padded, int size, double slope, double shift, uint8_t *out) {
    for (int y = 0; y < size; y++) {
        double by = slope * (y + 0.5) + shift;
        int whole = (int)floor(by), right = (int)((by - whole) * 256), left = 256 - right;
        /* The pixels whose centre lands within the image. */
        int first = (int)ceil(-0.5 - by), last = (int)ceil(size - 0.5 - by);
        first = first < 0 ? 0 : first > size ? size : first;
        last = last < first ? first : last > size ? size : last;
        const uint8_t *from = padded + (size_t)(y + 1) * (size_t)(size + 2) + 1 + whole;
        uint8_t *to = out + (size_t)y * (size_t)size;
        memset(to, GREY, (size_t)size);
        for (int x = first; x < last; x++) to[x] = (uint8_t)((from[x] * left + from[x + 1] * right) >> 8);
    }
}

FOR_EACH_PROCESSOR
static void move_anywhere(const uint8_t *padded, int size, const double m[6], uint8_t *out) {
    const double unit = 1 << BITS;
    const int64_t step_x = llrint(m[0] * unit), step_y = llrint(m[3] * unit), limit = (int64_t)size << BITS;
    for (int row = 0; row < size; row++) {
        int64_t x = (int64_t)floor((m[0] * 0.5 + m[1] * (row + 0.5) + m[2]) * unit);
        int64_t y = (int64_t)floor((m[3] * 0.5 + m[4] * (row + 0.5) + m[5]) * unit);
        uint8_t *to = out + (size_t)row * (size_t)size;
        for (int column = 0; column < size; column++, x += step_x, y += step_y) {
            if (x < 0 || x >= limit || y < 0 || y >= limit) {
                to[column] = GREY;
                continue;
            }
            /* From the centre of the pixel above and to the left, which in `padded` is one further on. */
            int across = (int)x + (1 << (BITS - 1)), down = (int)y + (1 << (BITS - 1));
            const uint8_t *from = padded + (down >> BITS) * (size + 2) + (across >> BITS);
            int right = (across >> (BITS - 8)) & 255, left = 256 - right, below = (down >> (BITS - 8)) & 255;
            int above = (from[0] * left + from[1] * right) * (256 - below);
            to[column] = (uint8_t)((above + (from[size + 2] * left + from[size + 3] * right) * below) >> 16);
        }
    }
}

int warp(const uint8_t *image, int size, const double m[6], uint8_t *out) {
    size_t plane = (size_t)size * (size_t)size;
    int only_across = m[0] == 1 && m[3] == 0 && m[4] == 1 && m[5] == 0;
    int only_down = m[0] == 1 && m[1] == 0 && m[2] == 0 && m[4] == 1;
    uint8_t *padded = malloc((size_t)(size + 2) * (size_t)(size + 2));
    uint8_t *transposed = malloc(plane);
    if (!padded || !transposed) {
        free(padded);
        free(transposed);
        return -1;
    }
    for (int c = 0; c < 3; c++, image += plane, out += plane) {
        add_border(image, size, only_down, padded);
        if (only_across)
            move_rows(padded, size, m[1], m[2], out);
        else if (only_down) {
            move_rows(padded, size, m[3], m[5], transposed);
            transpose(transposed, (size_t)size, out, (size_t)size);
        } else
            move_anywhere(padded, size, m, out);
    }
    free(padded);
    free(transposed);
    return 0;
}

FOR_EACH_PROCESSOR
void sharpen(const uint8_t *image, int size, double factor, uint8_t *out) {
    const int weight = (int)lrint(factor * 256);
    const size_t n = (size_t)size, plane = n * n;
    memcpy(out, image, 3 * plane);
    for (int c = 0; c < 3; c++)
        for (size_t y = 1; y + 1 < n; y++) {
            const uint8_t *at = image + (size_t)c * plane + y * n, *above = at - n, *below = at + n;
            uint8_t *restrict to = out + (size_t)c * plane + y * n;
            for (size_t x = 1; x + 1 < n; x++) {
                int sum = above[x - 1] + above[x] + above[x + 1] + at[x - 1] + 5 * at[x] + at[x + 1] + below[x - 1] +
                          below[x] + below[x + 1];
                int smooth = (sum * 5042 + 32768) >> 16; /* sum / 13, rounded */
                int sharp = smooth + ((weight * (at[x] - smooth)) >> 8);
                to[x] = (uint8_t)(sharp < 0 ? 0 : sharp > 255 ? 255 : sharp);
            }
        }
}
