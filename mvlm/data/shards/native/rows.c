/* mvlm.data.shards._rows: rows of mapped shards. plain_rows.py does the same in Python; row_index.py has the format.

   The content of a mapped file may change at any moment, so a number read from it is copied before it is checked. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

enum { TEXT = 't', IMAGE = 'I', TEXTS = 'l', BIT = 'b', INT32 = 'i', UINT32 = 'u', INT64 = 'q', MOST_COLUMNS = 32 };

/* Bits of an element in the first buffer that is read of a column. */
static const uint64_t BITS[256] = {
    [TEXT] = 32, [IMAGE] = 32, [TEXTS] = 32, [BIT] = 1, [INT32] = 32, [UINT32] = 32, [INT64] = 64,
};

struct span {
    uint64_t first, length; /* bytes of the shard */
};

/* A column's part of a row: the bytes of a text or an image, the offsets of a list, the value of anything else. */
struct part {
    struct span bytes, offsets;
    uint64_t base; /* of a list, where the bytes of the batch's texts begin: offsets are relative to it */
    int64_t value; /* of a list, how many bytes there are from `base` on */
};

struct shard {
    Py_buffer data, starts, buffers;
    const char *kinds;
    int columns;
};

static uint32_t crc_table[8][256];

static void make_crc_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        crc_table[0][byte] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = crc_table[slice - 1][byte];
            crc_table[slice][byte] = crc >> 8 ^ crc_table[0][crc & 255];
        }
}

/* CRC-32 of zlib, eight bytes at a time (Kounavis and Berry, 2005), on a little-endian machine. */
static uint32_t crc32_of(uint32_t crc, const unsigned char *at, uint64_t length) {
    for (; length >= 8; length -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = crc_table[7][word & 255] ^ crc_table[6][word >> 8 & 255] ^ crc_table[5][word >> 16 & 255] ^
              crc_table[4][word >> 24 & 255] ^ crc_table[3][word >> 32 & 255] ^ crc_table[2][word >> 40 & 255] ^
              crc_table[1][word >> 48 & 255] ^ crc_table[0][word >> 56];
    }
    while (length--) crc = crc >> 8 ^ crc_table[0][(crc ^ *at++) & 255];
    return crc;
}

static uint32_t crc32_of_number(uint32_t crc, int64_t number) {
    return crc32_of(crc, (const unsigned char *)&number, sizeof number);
}

/* How many numbers a column has in `buffers`: two, an offset and a length, for each of its buffers. */
static int places(char kind) { return kind == TEXTS ? 6 : kind == TEXT || kind == IMAGE ? 4 : 2; }

/* Copy `bytes` bytes from `first` on; returns 0 if the shard does not reach that far. */
static int copy_bytes(const struct shard *shard, uint64_t first, void *out, uint64_t bytes) {
    uint64_t size = (uint64_t)shard->data.len;
    if (first > size || bytes > size - first) return 0;
    memcpy(out, (const char *)shard->data.buf + first, bytes);
    return 1;
}

/* Find element `at` in a buffer of int32 offsets; returns 0 if it does not lie within `length`. */
static int find_span(const struct shard *shard, uint64_t offsets, uint64_t at, uint64_t length, struct span *out) {
    int32_t ends[2];
    if (!copy_bytes(shard, offsets + 4 * at, ends, sizeof ends) || ends[0] < 0 || ends[0] > ends[1] ||
        (uint64_t)ends[1] > length)
        return 0;
    out->first = (uint64_t)ends[0], out->length = (uint64_t)(ends[1] - ends[0]);
    return 1;
}

/* Make an offset in a column one in the shard; returns 0 if the bytes do not lie in the shard. */
static int rebase(const struct shard *shard, uint64_t base, struct span *bytes) {
    uint64_t size = (uint64_t)shard->data.len, end = bytes->first + bytes->length;
    bytes->first += base;
    return base <= size && end <= size - base;
}

static int read_list(const struct shard *shard, const uint64_t *buffers, uint64_t at, struct part *out) {
    struct span one;
    uint64_t count = buffers[3] >> 2, size = (uint64_t)shard->data.len;
    if (!count || !find_span(shard, buffers[0], at, count - 1, &out->offsets)) return 0;
    out->bytes = (struct span){0, 0};
    for (uint64_t nth = 0; nth < out->offsets.length; nth++) {
        if (!find_span(shard, buffers[2], out->offsets.first + nth, buffers[5], &one)) return 0;
        if (!nth) out->bytes.first = one.first;
        out->bytes.length = one.first + one.length - out->bytes.first;
    }
    if (out->offsets.length && !rebase(shard, buffers[4], &out->bytes)) return 0;
    out->offsets.first = buffers[2] + 4 * out->offsets.first;
    out->base = buffers[4];
    out->value = (int64_t)(buffers[5] < size - buffers[4] ? buffers[5] : size - buffers[4]);
    return 1;
}

static int read_number(const struct shard *shard, char kind, uint64_t first, uint64_t at, int64_t *out) {
    int32_t int32;
    uint32_t uint32;
    unsigned char byte;
    switch (kind) {
    case INT64: return copy_bytes(shard, first + 8 * at, out, 8);
    case INT32:
        if (!copy_bytes(shard, first + 4 * at, &int32, 4)) return 0;
        *out = int32;
        return 1;
    case UINT32:
        if (!copy_bytes(shard, first + 4 * at, &uint32, 4)) return 0;
        *out = uint32;
        return 1;
    default:
        if (!copy_bytes(shard, first + (at >> 3), &byte, 1)) return 0;
        *out = byte >> (at & 7) & 1;
        return 1;
    }
}

/* Find the parts of a row; returns NULL, or what is wrong. */
static const char *find(const struct shard *shard, uint64_t number, struct part *parts) {
    static const char outside[] = "an offset points outside its column";
    const uint64_t *starts = shard->starts.buf, *buffers = shard->buffers.buf;
    uint64_t low = 0, high = (uint64_t)shard->starts.len / 8, stride = 0;
    if (!high || number >= starts[high - 1]) return "the shard has no such row";
    uint64_t last = starts[high - 1], guess = number / (last / (high - 1) + 1); /* most batches have the same number of rows */
    if (starts[guess] <= number) low = guess;
    if (number < starts[low + 1]) high = low + 2;
    for (high--; high - low > 1;) {
        uint64_t middle = low + (high - low) / 2;
        if (starts[middle] <= number) low = middle;
        else high = middle;
    }
    for (int column = 0; column < shard->columns; column++) stride += (uint64_t)places(shard->kinds[column]);
    if ((low + 1) * stride * 8 > (uint64_t)shard->buffers.len) return "its index is of other columns";
    uint64_t at = number - starts[low];
    buffers += low * stride;
    /* No part of a random row is in the processor's caches: prefetch all columns at once, not one after another. */
    for (int column = 0, place = 0; column < shard->columns; place += places(shard->kinds[column++]))
        __builtin_prefetch((const char *)shard->data.buf + buffers[place] + BITS[(unsigned char)shard->kinds[column]] * at / 8);
    for (int column = 0; column < shard->columns; column++) {
        char kind = shard->kinds[column];
        struct part *part = parts + column;
        if (kind == TEXTS) {
            if (!read_list(shard, buffers, at, part)) return outside;
        } else if (kind == TEXT || kind == IMAGE) {
            if (!find_span(shard, buffers[0], at, buffers[3], &part->bytes) || !rebase(shard, buffers[2], &part->bytes))
                return outside;
            if (kind == TEXT) __builtin_prefetch((const char *)shard->data.buf + part->bytes.first);
        } else if (!read_number(shard, kind, buffers[0], at, &part->value)) {
            return outside;
        }
        buffers += places(kind);
    }
    return NULL;
}

static uint32_t crc32_of_row(const struct shard *shard, const struct part *parts) {
    const unsigned char *data = shard->data.buf;
    uint32_t crc = ~0u;
    for (int column = 0; column < shard->columns; column++) {
        const struct part *part = parts + column;
        char kind = shard->kinds[column];
        if (kind == TEXTS) {
            crc = crc32_of_number(crc, (int64_t)part->offsets.length);
            for (uint64_t nth = 0; nth < part->offsets.length; nth++) {
                int32_t ends[2];
                memcpy(ends, data + part->offsets.first + 4 * nth, sizeof ends);
                crc = crc32_of_number(crc, (int64_t)ends[1] - ends[0]);
            }
        } else if (kind != IMAGE) {
            crc = crc32_of_number(crc, kind == TEXT ? (int64_t)part->bytes.length : part->value);
        }
    }
    for (int column = 0; column < shard->columns; column++)
        if (shard->kinds[column] == TEXT || shard->kinds[column] == TEXTS)
            crc = crc32_of(crc, data + parts[column].bytes.first, parts[column].bytes.length);
    return ~crc;
}

static PyObject *text(const struct shard *shard, uint64_t first, uint64_t length) {
    return PyUnicode_DecodeUTF8((const char *)shard->data.buf + first, (Py_ssize_t)length, NULL);
}

static PyObject *texts(const struct shard *shard, const struct part *part) {
    PyObject *list = PyList_New((Py_ssize_t)part->offsets.length);
    struct span one;
    for (uint64_t nth = 0; list && nth < part->offsets.length; nth++) {
        PyObject *item = NULL;
        if (find_span(shard, part->offsets.first, nth, (uint64_t)part->value, &one))
            item = text(shard, part->base + one.first, one.length);
        else
            PyErr_SetString(PyExc_ValueError, "it changes while it is read");
        if (!item || PyList_SetItem(list, (Py_ssize_t)nth, item)) Py_CLEAR(list);
    }
    return list;
}

static PyObject *image(PyObject *data, const struct span *bytes) {
    PyObject *first = PyLong_FromUnsignedLongLong(bytes->first), *slice = NULL, *view = NULL;
    PyObject *end = PyLong_FromUnsignedLongLong(bytes->first + bytes->length);
    if (first && end) slice = PySlice_New(first, end, NULL);
    if (slice) view = PyObject_GetItem(data, slice);
    Py_XDECREF(first), Py_XDECREF(end), Py_XDECREF(slice);
    return view;
}

static PyObject *values(const struct shard *shard, PyObject *data, const struct part *parts) {
    PyObject *row = PyTuple_New(shard->columns);
    for (int column = 0; row && column < shard->columns; column++) {
        const struct part *part = parts + column;
        PyObject *value;
        switch (shard->kinds[column]) {
        case TEXT: value = text(shard, part->bytes.first, part->bytes.length); break;
        case TEXTS: value = texts(shard, part); break;
        case IMAGE: value = image(data, &part->bytes); break;
        case BIT: value = PyBool_FromLong((long)part->value); break;
        default: value = PyLong_FromLongLong(part->value);
        }
        if (!value || PyTuple_SetItem(row, column, value)) Py_CLEAR(row);
    }
    return row;
}

/* Does the work of `read_row`, which wants the values and passes `crc32s` or None to check nothing, and `row_crc32`. */
static PyObject *look_up(PyObject *arguments, int wants_values) {
    PyObject *data, *crc32s = Py_None, *result = NULL;
    struct shard shard;
    struct part parts[MOST_COLUMNS];
    Py_ssize_t number, columns;
    Py_buffer known = {0};
    if (!PyArg_ParseTuple(arguments, wants_values ? "Oy*y*s#nO:read_row" : "Oy*y*s#n:row_crc32", &data, &shard.starts,
                          &shard.buffers, &shard.kinds, &columns, &number, &crc32s))
        return NULL;
    shard.columns = (int)columns;
    if (columns > MOST_COLUMNS) PyErr_SetString(PyExc_ValueError, "it has too many columns");
    else if (PyObject_GetBuffer(data, &shard.data, PyBUF_SIMPLE) == 0) {
        if (crc32s == Py_None || PyObject_GetBuffer(crc32s, &known, PyBUF_SIMPLE) == 0) {
            if (known.obj) __builtin_prefetch((const char *)known.buf + 4 * number);
            const char *wrong = find(&shard, number, parts);
            uint32_t expected, crc32 = wrong || (wants_values && !known.obj) ? 0 : crc32_of_row(&shard, parts);
            if (!wrong && known.obj) {
                if (known.len < 4 || number > (known.len - 4) / 4) wrong = "its index is of another shard";
                else memcpy(&expected, (const char *)known.buf + 4 * number, 4);
                if (!wrong && expected != crc32)
                    wrong = "its texts are not those that were written (their checksum differs)";
            }
            if (wrong) PyErr_SetString(PyExc_ValueError, wrong);
            else result = wants_values ? values(&shard, data, parts) : PyLong_FromUnsignedLong(crc32);
            if (known.obj) PyBuffer_Release(&known);
        }
        PyBuffer_Release(&shard.data);
    }
    PyBuffer_Release(&shard.starts);
    PyBuffer_Release(&shard.buffers);
    return result;
}

static PyObject *read_row(PyObject *module, PyObject *arguments) { return look_up(arguments, 1); }

static PyObject *row_crc32(PyObject *module, PyObject *arguments) { return look_up(arguments, 0); }

static PyMethodDef functions[] = {
    {"read_row", read_row, METH_VARARGS, "read_row(data, starts, buffers, kinds, number, crc32s) -> the row's values"},
    {"row_crc32", row_crc32, METH_VARARGS, "row_crc32(data, starts, buffers, kinds, number) -> the CRC-32 of the row as it is now"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mvlm.data.shards._rows", "Rows of mapped shards; damaged ones raise ValueError.", -1,
    functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__rows(void) {
    make_crc_table();
    return PyModule_Create(&definition);
}
