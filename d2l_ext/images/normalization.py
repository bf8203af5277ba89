"""Images brought to mean 0 and deviation 1: what their channels have before."""
import numpy as np

from ..arguments import check_number, refusal


def check_images(images):
    """Raise a ValueError unless there are images, and as bytes, as ``Batches`` takes them."""
    if not (isinstance(images, np.ndarray) and images.ndim in (3, 4) and images.dtype == np.uint8
            and images.size):
        raise refusal('images', images, 'an array of uint8 of shape (number, height, width) or '
                      '(number, channels, height, width)')


def channel_statistics(images, max_value=255):
    """Return mean and standard deviation of each channel, float64 of shape (channels,) each.

    For ``Batches(normalize=)``. `max_value` is the value that counts as 1. A ValueError if all
    pixels of a channel are alike.
    """
    check_images(images)
    max_value = check_number('max_value', max_value, 0)
    images = images.reshape(len(images), -1, *images.shape[-2:])
    count = images[:, 0].size
    # Exact sums, and no copy of the images in another type.
    mean = np.einsum('nchw->c', images, dtype=np.int64) / count
    deviation = np.sqrt(np.einsum('nchw,nchw->c', images, images, dtype=np.int64) / count - mean**2)
    if not deviation.all():
        raise ValueError('a channel whose pixels are all alike cannot be normalized')
    return mean / max_value, deviation / max_value
