#include "jpeg.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "orientation.h"
#include "resize.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is needed: other libraries cannot decode a part of an image"
#endif

enum {
    SPARE = 2,           /* extra pixels around those used: colours at the edge of a part differ from the whole's */
    SEGMENT_MAX = 65533, /* bytes */
};

struct decoder {
    struct jpeg_decompress_struct jpeg; /* must be first: libjpeg hands back a pointer to it */
    struct jpeg_error_mgr errors;
    jmp_buf failed;
    enum outcome outcome;
    char *message;
    const uint8_t *data;
    size_t length;
    struct taps across, down;
    uint8_t *strip;
    int16_t *columns, *half;
};

static void stop(struct decoder *decoder, enum outcome outcome) {
    decoder->outcome = outcome;
    longjmp(decoder->failed, 1);
}

static void refuse(struct decoder *decoder, const char *message) {
    snprintf(decoder->message, MESSAGE_LENGTH, "%s", message);
    stop(decoder, DAMAGED);
}

static void on_error(j_common_ptr jpeg) {
    struct decoder *decoder = (struct decoder *)jpeg;
    if (jpeg->err->msg_code == JERR_OUT_OF_MEMORY) stop(decoder, NO_MEMORY);
    char text[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, text);
    refuse(decoder, text);
}

static void on_message(j_common_ptr jpeg, int level) {
    /* Negative for a warning, which is all that libjpeg gives for damage that it can fill with grey. */
    if (level < 0) on_error(jpeg);
}

static void prepare(struct decoder *decoder, const uint8_t *data, size_t length, char *message) {
    memset(decoder, 0, sizeof *decoder);
    decoder->data = data;
    decoder->length = length;
    decoder->message = message;
    decoder->jpeg.err = jpeg_std_error(&decoder->errors);
    decoder->errors.error_exit = on_error;
    decoder->errors.emit_message = on_message;
}

static void release(struct decoder *decoder) {
    jpeg_destroy_decompress(&decoder->jpeg);
    free_taps(&decoder->across);
    free_taps(&decoder->down);
    free(decoder->strip);
    free(decoder->half);
    free(decoder->columns);
}

static void read_header(struct decoder *decoder, int with_metadata) {
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, decoder->data, decoder->length);
    if (with_metadata) jpeg_save_markers(jpeg, JPEG_APP0 + 1, SEGMENT_MAX);
    jpeg_read_header(jpeg, TRUE);
    if ((uint64_t)jpeg->image_width * jpeg->image_height > PIXEL_LIMIT) {
        snprintf(decoder->message, MESSAGE_LENGTH, "%u x %u pixels are more than the limit of %d", jpeg->image_width,
                 jpeg->image_height, PIXEL_LIMIT);
        stop(decoder, DAMAGED);
    }
}

static int has_plain_colours(const struct jpeg_decompress_struct *jpeg) {
    if (jpeg->data_precision != 8) return 0;
    if (jpeg->num_components == 1) return jpeg->jpeg_color_space == JCS_GRAYSCALE;
    return jpeg->num_components == 3 &&
           (jpeg->jpeg_color_space == JCS_YCbCr || jpeg->jpeg_color_space == JCS_RGB);
}

static int is_upright(const struct jpeg_decompress_struct *jpeg) {
    enum orientation exif = UNSAID, xmp = UNSAID;
    int segments = 0;
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
        int is_exif = marker->data_length >= 4 && memcmp(marker->data, "Exif", 4) == 0;
        enum orientation said = orientation_of(marker->data, marker->data_length);
        segments += is_exif;
        if (is_exif)
            exif = said;
        else if (said != UNSAID)
            xmp = said;
    }
    /* EXIF takes precedence over XMP; EXIF in several parts would have to be joined. */
    return segments < 2 && (exif == UNSAID ? xmp : exif) != TURNED;
}

static void describe(struct decoder *decoder, struct header *header) {
    if (setjmp(decoder->failed)) return;
    read_header(decoder, 1);
    header->width = (int)decoder->jpeg.image_width;
    header->height = (int)decoder->jpeg.image_height;
    header->plain = has_plain_colours(&decoder->jpeg) && is_upright(&decoder->jpeg);
}

enum outcome jpeg_header(const uint8_t *data, size_t length, struct header *header, char message[MESSAGE_LENGTH]) {
    struct decoder decoder;
    prepare(&decoder, data, length, message);
    describe(&decoder, header);
    release(&decoder);
    return decoder.outcome;
}

static void *room(struct decoder *decoder, size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) stop(decoder, NO_MEMORY);
    return memory;
}

static void plan_axis(struct decoder *decoder, struct taps *taps, double from, double to, int limit, int size,
                      int flip) {
    int failed = make_taps(taps, from, to, limit, size, flip);
    if (failed < 0) stop(decoder, NO_MEMORY);
    if (failed) stop(decoder, DECLINED);
}

static void decode_part(struct decoder *decoder, const struct view *view, uint8_t *out) {
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    int channels = jpeg->num_components, shrink = view->shrink;
    jpeg->out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)shrink;
    jpeg_start_decompress(jpeg);

    int full_width = (int)jpeg->output_width, full_height = (int)jpeg->output_height, size = view->size;
    plan_axis(decoder, &decoder->across, (double)view->left / shrink, (double)view->right / shrink, full_width, size,
              view->flip);
    plan_axis(decoder, &decoder->down, (double)view->top / shrink, (double)view->bottom / shrink, full_height, size,
              0);
    int left = decoder->across.first - SPARE < 0 ? 0 : decoder->across.first - SPARE;
    int right = decoder->across.last + SPARE > full_width ? full_width : decoder->across.last + SPARE;
    int top = decoder->down.first, rows = decoder->down.last - top;

    JDIMENSION offset = (JDIMENSION)left, width = (JDIMENSION)(right - left);
    jpeg_crop_scanline(jpeg, &offset, &width);
    size_t stride = strip_stride((int)width, channels);
    decoder->strip = room(decoder, STRIP * stride + 32);
    /* libjpeg-turbo bypasses the cache for rows aligned to 32 bytes, and we read them right after: misalign them. */
    uint8_t *strip = decoder->strip + ((uintptr_t)decoder->strip % 32 ? 0 : 16);
    decoder->columns = room(decoder, STRIP * stride * sizeof *decoder->columns);
    int room_rows = (rows + STRIP - 1) / STRIP * STRIP;
    decoder->half = room(decoder, (size_t)channels * (size_t)room_rows * half_stride(size) * sizeof *decoder->half);
    memset(strip, 0, STRIP * stride);

    if (jpeg_skip_scanlines(jpeg, (JDIMENSION)top) != (JDIMENSION)top) refuse(decoder, "rows are missing");
    for (int row = 0; row < rows; row += STRIP) {
        int wanted = rows - row < STRIP ? rows - row : STRIP;
        for (int have = 0; have < wanted;) {
            JSAMPROW lines[STRIP];
            for (int i = have; i < wanted; i++) lines[i - have] = strip + (size_t)i * stride;
            have += (int)jpeg_read_scanlines(jpeg, lines, (JDIMENSION)(wanted - have));
        }
        resize_across(strip, (int)width, channels, (int)offset, &decoder->across, size, decoder->columns,
                      decoder->half, room_rows, row);
    }
    resize_down(decoder->half, channels, room_rows, top, &decoder->down, size, out);
    size_t plane = (size_t)size * (size_t)size;
    for (int c = channels; c < 3; c++) memcpy(out + (size_t)c * plane, out, plane);
}

static void show(struct decoder *decoder, const struct view *view, uint8_t *out) {
    if (setjmp(decoder->failed)) return;
    read_header(decoder, 0);
    if (!has_plain_colours(&decoder->jpeg)) stop(decoder, DECLINED);
    if (view->right > (int)decoder->jpeg.image_width || view->bottom > (int)decoder->jpeg.image_height)
        refuse(decoder, "the part lies outside the image");
    decode_part(decoder, view, out);
}

enum outcome jpeg_view(const uint8_t *data, size_t length, const struct view *view, uint8_t *out,
                       char message[MESSAGE_LENGTH]) {
    struct decoder decoder;
    prepare(&decoder, data, length, message);
    show(&decoder, view, out);
    release(&decoder);
    return decoder.outcome;
}
