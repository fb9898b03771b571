/* Random augmentation of cropped and resized images: 8-bit planes image[3][size][size]. */
#ifndef MVLM_AUGMENT_H
#define MVLM_AUGMENT_H

#include <stdint.h>

/* Output pixel (x, y), at its centre, shows the image at (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]),
 * interpolated between pixels; grey if that is outside. Returns 0, or -1 if out of memory. */
int warp(const uint8_t *image, int size, const double m[6], uint8_t *out);

/* out = smooth + factor * (image - smooth), where `smooth` is the image after a 3 x 3 smoothing filter. */
void sharpen(const uint8_t *image, int size, double factor, uint8_t *out);

#endif
