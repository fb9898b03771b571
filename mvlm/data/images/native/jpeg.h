/* Decodes parts of JPEGs by libjpeg-turbo; the bytes may be hostile. */
#ifndef MVLM_JPEG_H
#define MVLM_JPEG_H

#include <stddef.h>
#include <stdint.h>

enum outcome {
    DONE,
    DECLINED, /* sound, as far as we know, but left to another decoder */
    DAMAGED,  /* `message` has libjpeg's error or warning */
    NO_MEMORY,
};

enum {
    PIXEL_LIMIT = 89478485, /* as in mvlm/data/images/encoded.py, which also bounds the scans before calling this */
    SIZE_LIMIT = 8192, /* of a result, in pixels per side */
    MESSAGE_LENGTH = 256,
};

struct header {
    int width, height;
    int plain; /* 0: the colours or the orientation need another decoder */
};

struct view {
    int left, top, right, bottom; /* the part of the image that is kept, in pixels */
    int shrink;                   /* 1, 2, 4 or 8: divides the size at which it is decoded, before resizing */
    int flip;
    int size; /* of the result, in pixels per side */
};

enum outcome jpeg_header(const uint8_t *data, size_t length, struct header *header, char message[MESSAGE_LENGTH]);

/* Decode as much as the view needs, resized to planes out[3][size][size]. `view` must lie within the image. */
enum outcome jpeg_view(const uint8_t *data, size_t length, const struct view *view, uint8_t *out,
                       char message[MESSAGE_LENGTH]);

#endif
