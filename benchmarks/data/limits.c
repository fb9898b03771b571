/* Only decodes, to measure the cost of that: the part of a JPEG from (left, top) to (right, bottom), which may be all of
 * it. Returns 0, or 1 if libjpeg fails. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

struct failure {
    struct jpeg_error_mgr errors;
    jmp_buf failed;
};

static void on_error(j_common_ptr jpeg) { longjmp(((struct failure *)jpeg->err)->failed, 1); }

int decode(const unsigned char *data, size_t length, int left, int top, int right, int bottom) {
    struct jpeg_decompress_struct jpeg;
    struct failure failure;
    unsigned char *volatile rows = NULL;
    jpeg.err = jpeg_std_error(&failure.errors);
    failure.errors.error_exit = on_error;
    if (setjmp(failure.failed)) {
        jpeg_destroy_decompress(&jpeg);
        free(rows);
        return 1;
    }
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, data, length);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    JDIMENSION offset = (JDIMENSION)left, width = (JDIMENSION)(right - left);
    jpeg_crop_scanline(&jpeg, &offset, &width);
    jpeg_skip_scanlines(&jpeg, (JDIMENSION)top);
    rows = malloc((size_t)width * 3 * (size_t)(bottom - top));
    while (jpeg.output_scanline < (JDIMENSION)bottom) {
        JSAMPROW row = rows + (size_t)(jpeg.output_scanline - (JDIMENSION)top) * width * 3;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_destroy_decompress(&jpeg);
    free(rows);
    return 0;
}
