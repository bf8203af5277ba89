"""Writing files so that a crash leaves either the old content or the new, never half of one."""
import contextlib
import os
import pathlib
import secrets


@contextlib.contextmanager
def atomic_write(path):
    """Open a new binary file that takes the place of `path` when the block ends without error.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; `path` is then as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: it would hide the file from other users, whatever the umask says.
    temporary = path.parent / f'.{path.name}.{secrets.token_hex(4)}.tmp'
    try:
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
