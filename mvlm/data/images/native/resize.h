/* Antialiased bicubic resizing of rows as they are decoded: Pillow's filter, in 16-bit integers. */
#ifndef MVLM_RESIZE_H
#define MVLM_RESIZE_H

#include <stddef.h>
#include <stdint.h>

enum {
    STRIP = 16,    /* rows that are resized together, one per lane of a vector */
    MAX_TAPS = 64, /* source pixels an output pixel may draw on: for more, 15 bits of weight are too few */
};

/* Along one axis: output pixel i is the sum over k of weight[i * count + k] * source[start[i] + k]. */
struct taps {
    int count;
    int first, last; /* the source pixels in use, the last one excluded */
    int *start;
    int16_t *weight; /* in units of 2^-15 */
};

/* The taps of `size` output pixels that cover [from, to) of `limit` source pixels, the last first if `flip`.
 * Returns -1 if out of memory, 1 if there would be more than MAX_TAPS, else 0. */
int make_taps(struct taps *taps, double from, double to, int limit, int size, int flip);
void free_taps(struct taps *taps);

/* Values between two rows of a strip of `width` pixels, and between two rows of the half-resized image. */
size_t strip_stride(int width, int channels);
size_t half_stride(int size);

/* Resize STRIP rows of interleaved pixels across, to rows row .. row + STRIP of half[channels][rows][half_stride].
 * `columns` is room for STRIP * strip_stride(...) values; `origin` is the source pixel that the strip begins with. */
void resize_across(const uint8_t *strip, int width, int channels, int origin, const struct taps *taps, int size,
                   int16_t *columns, int16_t *half, int rows, int row);

/* Resize `half`, whose first row is source row `origin`, down to planes out[channels][size][size]. */
void resize_down(const int16_t *half, int channels, int rows, int origin, const struct taps *taps, int size,
                 uint8_t *out);

#endif
