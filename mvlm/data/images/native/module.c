/* mvlm.data.images._native: see mvlm/data/images/decode.py and augment.py, its only callers. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>

#include "augment.h"
#include "jpeg.h"

/* Limits matrix entries and factors, so that nothing computed from them overflows. */
static const double FARTHEST = 1 << 15;

static PyObject *raise_outcome(enum outcome outcome, const char *message) {
    if (outcome == NO_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, message);
    return NULL;
}

static PyObject *header(PyObject *module, PyObject *arguments) {
    Py_buffer data;
    if (!PyArg_ParseTuple(arguments, "y*:header", &data)) return NULL;
    struct header found;
    char message[MESSAGE_LENGTH];
    enum outcome outcome = jpeg_header(data.buf, (size_t)data.len, &found, message);
    PyBuffer_Release(&data);
    if (outcome != DONE) return raise_outcome(outcome, message);
    return Py_BuildValue("iiO", found.width, found.height, found.plain ? Py_True : Py_False);
}

static PyObject *view(PyObject *module, PyObject *arguments) {
    Py_buffer data, out;
    struct view view;
    if (!PyArg_ParseTuple(arguments, "y*(iiii)ipiw*:view", &data, &view.left, &view.top, &view.right, &view.bottom,
                          &view.shrink, &view.flip, &view.size, &out))
        return NULL;
    char message[MESSAGE_LENGTH] = "the view or its buffer does not make sense";
    enum outcome outcome = DAMAGED;
    int sound = 0 <= view.left && view.left < view.right && 0 <= view.top && view.top < view.bottom &&
                (view.shrink == 1 || view.shrink == 2 || view.shrink == 4 || view.shrink == 8) && view.size > 0 &&
                view.size <= SIZE_LIMIT && out.len == (Py_ssize_t)3 * view.size * view.size;
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        outcome = jpeg_view(data.buf, (size_t)data.len, &view, out.buf, message);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (outcome != DONE && outcome != DECLINED) return raise_outcome(outcome, message);
    return PyBool_FromLong(outcome == DONE);
}

/* Whether both are images of this size whose memory does not overlap. */
static int are_images(const Py_buffer *image, const Py_buffer *out, int size) {
    Py_ssize_t bytes = (Py_ssize_t)3 * size * size;
    const char *a = image->buf, *b = out->buf;
    return size > 0 && size <= SIZE_LIMIT && image->len == bytes && out->len == bytes &&
           (a + bytes <= b || b + bytes <= a);
}

static PyObject *warp_image(PyObject *module, PyObject *arguments) {
    Py_buffer image, out;
    double m[6];
    int size, failed = 0;
    if (!PyArg_ParseTuple(arguments, "y*i(dddddd)w*:warp", &image, &size, m, m + 1, m + 2, m + 3, m + 4, m + 5, &out))
        return NULL;
    int sound = are_images(&image, &out, size);
    for (int i = 0; i < 6; i++) sound = sound && fabs(m[i]) <= FARTHEST;
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        failed = warp(image.buf, size, m, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (failed) return PyErr_NoMemory();
    if (!sound) return raise_outcome(DAMAGED, "the images or the matrix do not make sense");
    Py_RETURN_NONE;
}

static PyObject *sharpen_image(PyObject *module, PyObject *arguments) {
    Py_buffer image, out;
    double factor;
    int size;
    if (!PyArg_ParseTuple(arguments, "y*idw*:sharpen", &image, &size, &factor, &out)) return NULL;
    int sound = are_images(&image, &out, size) && fabs(factor) <= FARTHEST;
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        sharpen(image.buf, size, factor, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (!sound) return raise_outcome(DAMAGED, "the images or the factor do not make sense");
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"header", header, METH_VARARGS,
     "header(data) -> (width, height, whether `view` shows the image as it should look)"},
    {"view", view, METH_VARARGS,
     "view(data, (left, top, right, bottom), shrink, flip, size, out) -> whether it decoded the part to uint8 "
     "[3, size, size] in `out`"},
    {"warp", warp_image, METH_VARARGS, "warp(image, size, matrix, out): uint8 [3, size, size] seen through a matrix"},
    {"sharpen", sharpen_image, METH_VARARGS, "sharpen(image, size, factor, out): below 1, `factor` makes it smoother"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mvlm.data.images._native", "Parts of JPEGs by libjpeg-turbo; damaged ones raise ValueError.", -1,
    functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
