"""The memory of images is reused, but never while a view of it exists."""

import os

import numpy as np
import pytest

from mvlm.data.loading.buffers import Kept, Shared

SHAPE = (2, 4, 3, 8, 8)


@pytest.mark.parametrize("kind", [Kept, Shared])
def test_a_buffer_is_reused_once_its_last_view_is_gone(kind):
    buffers = kind(SHAPE)
    first = buffers.take()
    address = first.images_VBCHW.ctypes.data
    first.images_VBCHW[:] = 7
    tensor = first.lend()
    view = tensor[1, 2:]
    del tensor, first
    assert view.data_ptr() == address + (1 * 4 + 2) * 3 * 8 * 8
    others = [buffers.take() for _ in range(3)]
    assert address not in {other.images_VBCHW.ctypes.data for other in others}
    for other in others:
        other.images_VBCHW[:] = 1
    assert (view == 7).all()
    del view
    assert buffers.take().images_VBCHW.ctypes.data == address
    buffers.close()


def test_shared_memory_has_no_name_and_its_files_are_closed():
    before, names = len(os.listdir("/proc/self/fd")), set(os.listdir("/dev/shm"))
    buffers = Shared(SHAPE)
    taken = [buffers.take() for _ in range(3)]
    assert set(os.listdir("/dev/shm")) == names
    taken[0].images_VBCHW[:] = 9
    written = os.pread(taken[0].file, int(np.prod(SHAPE)), 0)
    assert written == bytes([9]) * int(np.prod(SHAPE))
    tensor = taken[1].lend()
    buffers.close()
    tensor += 1  # still valid for whoever holds it
    del tensor, taken, buffers
    assert len(os.listdir("/proc/self/fd")) == before
