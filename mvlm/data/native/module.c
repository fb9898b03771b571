/* mvlm.data._native: see mvlm/data/decoding.py, its only caller. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "jpeg.h"

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

static PyMethodDef functions[] = {
    {"header", header, METH_VARARGS,
     "header(data) -> (width, height, whether `view` shows the image as it should look)"},
    {"view", view, METH_VARARGS,
     "view(data, (left, top, right, bottom), shrink, flip, size, out) -> whether it took it: decode a part to uint8 "
     "[3, size, size] in `out`"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mvlm.data._native", "Parts of JPEGs by libjpeg-turbo; damaged ones raise ValueError.", -1,
    functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
