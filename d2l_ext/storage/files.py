"""Writing files so that a crash leaves either the old content or the new, never half of one."""
import contextlib
import glob
import os
import secrets
import time

from ..arguments import check_path

_LEFT_BEHIND = 3600  # seconds without a write after which nobody is writing to a temporary file


@contextlib.contextmanager
def atomic_write(path):
    """Open a new binary file that takes the place of `path` when the block ends without error.

    Several processes may write the same file at once; the last to end wins. What a killed process
    began goes at the first write that is an hour later.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; `path` is then as it was.
    """
    path = check_path('path', path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f'.{glob.escape(path.name)}.{"[0-9a-f]" * 8}.tmp'):
        with contextlib.suppress(OSError):  # another process may clean up, too
            if time.time() - old.stat().st_mtime > _LEFT_BEHIND:
                old.unlink()
    # Not tempfile's: it would hide the file from other users, whatever the umask says.
    temporary = path.parent / f'.{path.name}.{secrets.token_hex(4)}.tmp'
    try:
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # On a full disk the system does not say which file had no room.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
