#define _GNU_SOURCE /* memmem */
#include "orientation.h"

#include <string.h>

enum { ORIENTATION_TAG = 0x0112, SHORT_TYPE = 3, ENTRY_BYTES = 12 };

static unsigned number(const uint8_t *at, int bytes, int big_endian) {
    unsigned value = 0;
    for (int i = 0; i < bytes; i++) value |= (unsigned)at[big_endian ? bytes - 1 - i : i] << (8 * i);
    return value;
}

static enum orientation of_tiff(const uint8_t *tiff, size_t length) {
    if (length < 8 || (memcmp(tiff, "II*\0", 4) != 0 && memcmp(tiff, "MM\0*", 4) != 0)) return TURNED;
    int big = tiff[0] == 'M';
    size_t at = number(tiff + 4, 4, big);
    if (at > length - 2) return TURNED;
    size_t entries = number(tiff + at, 2, big);
    at += 2;
    if (entries * ENTRY_BYTES > length - at) return TURNED;
    for (const uint8_t *entry = tiff + at; entries > 0; entries--, entry += ENTRY_BYTES) {
        if (number(entry, 2, big) != ORIENTATION_TAG) continue;
        int upright = number(entry + 2, 2, big) == SHORT_TYPE && number(entry + 4, 4, big) == 1 &&
                      number(entry + 8, 2, big) == 1;
        return upright ? UPRIGHT : TURNED;
    }
    return UNSAID;
}

enum orientation orientation_of(const uint8_t *segment, size_t length) {
    if (length >= 6 && memcmp(segment, "Exif\0\0", 6) == 0) return of_tiff(segment + 6, length - 6);
    static const char xmp[] = "http://ns.adobe.com/xap/1.0/";
    if (length > sizeof xmp && memcmp(segment, xmp, sizeof xmp) == 0 &&
        memmem(segment, length, "tiff:Orientation", 16) != NULL)
        return TURNED;
    return UNSAID;
}
