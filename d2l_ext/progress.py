"""One progress bar for long epochs and downloads."""
import os
import sys

from tqdm.auto import tqdm

DELAY = 5  # seconds; whatever is done sooner needs no bar


def progress_bar(total, unit, description):
    """Return a tqdm bar over `total` (int or None) units that appears after DELAY seconds.

    Drawn on standard error in a terminal and as a widget in a notebook; silent where standard
    error is a file or a pipe, or if tqdm's own variable TQDM_DISABLE is set. It removes itself
    when closed; in the file of an executed notebook an empty widget would stay.
    """
    in_notebook = type(sys.stderr).__module__.startswith('ipykernel')
    unwanted = bool(os.environ.get('TQDM_DISABLE'))
    return tqdm(total=total, unit=unit, desc=description, unit_scale=unit == 'B', leave=False,
                delay=DELAY, disable=unwanted or (False if in_notebook else None))
