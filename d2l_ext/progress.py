"""One progress bar for long epochs and downloads."""
import sys

from tqdm.auto import tqdm

DELAY = 5  # seconds; whatever is done sooner needs no bar


def progress_bar(total, unit, description):
    """Return a tqdm bar over `total` (int or None) units that appears after DELAY seconds.

    Drawn on standard error in a terminal and as a widget in a notebook; silent where standard
    error is a file or a pipe. It removes itself when closed.
    """
    in_notebook = type(sys.stderr).__module__.startswith('ipykernel')
    return tqdm(total=total, unit=unit, desc=description, unit_scale=unit == 'B', leave=False,
                delay=DELAY, disable=False if in_notebook else None)
