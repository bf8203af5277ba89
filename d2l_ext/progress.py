"""What is seen meanwhile: a bar for long epochs and downloads, a line for each epoch."""
import os
import sys

from tqdm.auto import tqdm

from .arguments import check_keys

DELAY = 5  # seconds; whatever is done sooner needs no bar


class _Bar(tqdm):
    """A bar that closes complete and, in a notebook, leaves nothing in the file.

    A widget in the output could not be shown when the notebook is opened again.
    """

    _output = None

    def display(self, *args, **kwargs):
        # tqdm's widgets have `displayed`, its text has not.
        if not getattr(self, 'displayed', True) and kwargs.get('check_delay', True):
            from IPython.display import display
            self._output, self.displayed = display(self.container, display_id=True), True
        return super().display(*args, **kwargs)

    def close(self):
        self.total = self.n  # one that ends early would stay, in red
        super().close()
        if self._output is not None:
            self._output.update({}, raw=True)


def progress_bar(total, unit, description):
    """Return a tqdm bar over `total` (int or None) units that appears after DELAY seconds.

    Drawn on standard error in a terminal and as a widget in a notebook; silent where standard
    error is a file or a pipe, or if tqdm's own variable TQDM_DISABLE is set. It removes itself
    when closed; in the file of an executed notebook an empty output stays.
    """
    in_notebook = type(sys.stderr).__module__.startswith('ipykernel')
    unwanted = bool(os.environ.get('TQDM_DISABLE'))
    return _Bar(total=total, unit=unit, desc=description, unit_scale=unit == 'B', leave=False,
                delay=DELAY, disable=unwanted or (False if in_notebook else None))


def print_epoch(row):
    """Print a row of a history as the section does.

    Parameters
    ----------
    row : dict
        One epoch, as ``train_ch5`` reports it.

    Raises
    ------
    ValueError
        If `row` lacks a key.
    """
    check_keys('row', row, ('epoch', 'loss', 'train_acc', 'test_acc', 'seconds'))
    print('epoch %d, loss %.4f, train acc %.3f, test acc %.3f, time %.1f sec'
          % (row['epoch'], row['loss'], row['train_acc'], row['test_acc'], row['seconds']),
          flush=True)
