/* Whether a picture is stored upright, read from the metadata of a JPEG. */
#ifndef MVLM_ORIENTATION_H
#define MVLM_ORIENTATION_H

#include <stddef.h>
#include <stdint.h>

enum orientation { UNSAID, UPRIGHT, TURNED };

/* Reads the content of one APP1 segment; one that cannot be read to its end counts as TURNED. */
enum orientation orientation_of(const uint8_t *segment, size_t length);

#endif
