"""Images held out for validation."""
import numpy as np

from ..arguments import check_int


def split_labels(labels, number, seed):
    """Return the places of images to train on, and of `number` held out from each class alike."""
    from sklearn.model_selection import train_test_split  # a second's import, needed here only

    number_of_classes = len(np.unique(labels))
    number = check_int('number', number, number_of_classes, len(labels) - number_of_classes)
    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=number, stratify=labels,
        random_state=check_int('seed', seed, 0, 2**32 - 1))
    return np.sort(kept), np.sort(held_out)
