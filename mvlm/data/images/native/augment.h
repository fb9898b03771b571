/* Random augmentation of finished images: planes image[3][size][size] of 8 bits. */
#ifndef MVLM_AUGMENT_H
#define MVLM_AUGMENT_H

#include <stdint.h>

/* Output pixel (x, y), at its centre, shows place (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]) of the image, between
 * whose pixels it interpolates; grey where that is outside. Returns 0, or -1 without memory. */
int warp(const uint8_t *image, int size, const double m[6], uint8_t *out);

/* out = smooth + factor * (image - smooth), where `smooth` is the image under a filter of 3 x 3 pixels. */
void sharpen(const uint8_t *image, int size, double factor, uint8_t *out);

#endif
