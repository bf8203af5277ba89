"""Images mirrored and moved at random, in NumPy.

On bytes, this takes less time than the copy to the device that comes next, where MXNet's own
operators for an offset an image take several times as long.
"""
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def flip_and_shift(images, flip, shift):
    """Return uint8 images (number, channels, height, width), moved as ``Batches`` describes.

    May alter `images`.
    """
    if flip:
        mirrored = np.random.rand(len(images)) < 0.5
        images[mirrored] = images[mirrored, :, :, ::-1]
    if shift:
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)), 'reflect')
        windows = sliding_window_view(padded, images.shape[2:], axis=(2, 3))  # no copy
        rows, columns = np.random.randint(2 * shift + 1, size=(2, len(images)))
        images = windows[np.arange(len(images)), :, rows, columns]
    return images
