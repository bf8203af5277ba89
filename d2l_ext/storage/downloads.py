"""Published files: found, checked, downloaded."""
import os

import pooch

from ..arguments import check_path
from ..devices import mx
from ..progress import progress_bar
from .files import atomic_write

# Seconds without a byte before the next mirror is tried. A slow one is waited for while it sends.
DOWNLOAD_TIMEOUT = 15


def has_hash(path, hashes):
    """Return whether the sum of a file is one of `hashes`, each as pooch writes it."""
    return any(f'{kind}:{pooch.file_hash(path, kind)}' in hashes
               for kind in sorted({known.split(':')[0] for known in hashes}))


def is_published(path, hashes):
    """Return whether a file has one of the known sums that `hashes` has for its name."""
    return has_hash(path, hashes[path.name])


def check_published(path, hashes):
    """Raise a ValueError that names the fix unless a file :func:`is_published`."""
    if not is_published(path, hashes):
        raise ValueError(
            f'{path} is not the published file (its checksum differs): damaged, incomplete or '
            'swapped with another. Remove it or fetch it again; for a copy that differs on '
            'purpose pass verify=False')


def data_folders(folder_name):
    """Return the folders searched for a data set; a download goes into the first.

    `folder_name` in the folder that D2L_EXT_DATA names, if it is set, then in MXNet's own cache.

    Parameters
    ----------
    folder_name : str
        Such as ``'fashion-mnist'``.

    Returns
    -------
    list of pathlib.Path
        They need not exist.
    """
    own = os.environ.get('D2L_EXT_DATA')
    return [*([check_path('D2L_EXT_DATA', own) / folder_name] if own else []),
            check_path('MXNET_HOME', mx.base.data_dir()) / 'datasets' / folder_name]


def find_files(folder_name, names, hashes, fetch):
    """Return the one of :func:`data_folders` that holds the named files; fetch them if none does.

    ``fetch(names, folder)`` brings what is missing. `hashes` has the known sums, as pooch writes
    them, of these files and of others that `fetch` makes. A ValueError if some of the files are in
    D2L_EXT_DATA's folder and one is not the published one, which is left as it is. If all are
    there, whoever reads them checks them.
    """
    folders = data_folders(folder_name)
    folder, cache = folders[0], folders[-1]
    if len(folders) > 1:
        if all((folder / name).is_file() for name in names):
            return folder
        for name in hashes:  # what the reader put there is never replaced
            if (folder / name).is_file():
                check_published(folder / name, hashes)

    def present(path):
        return path.is_file() and is_published(path, hashes)

    if all(present(cache / name) for name in names):
        return cache
    fetch([name for name in names if not present(folder / name)], folder)
    return folder


def download(name, folder, mirrors, title, advice):
    """Fetch a file into `folder` from the first mirror that has it, whole or not at all.

    Each of `mirrors` is an address, to which `name` is added, and the known sum. An OSError if none
    has the file or it cannot be kept names the data set, `title`, and gives `advice` on what else
    the reader can do, in which ``{folder}`` stands for `folder`.
    """
    import requests  # a tenth of a second, needed here only

    failures = []
    for mirror, known in mirrors:
        try:
            # pooch sets the total of the bar; with None it fails. Its retrieve() would hide the
            # archive from other users, and what it had begun when killed would stay for good.
            with progress_bar(1, 'B', name) as bar, atomic_write(folder / name) as file:
                downloader = pooch.HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT,
                                                  chunk_size=1 << 16)
                downloader(mirror + name, file, None)
                file.flush()
                if not has_hash(file.name, [known]):
                    raise ValueError('wrong checksum')
            return
        except requests.RequestException as error:
            failures.append(f'  {mirror}: {type(error).__name__}')
        except ValueError as error:
            failures.append(f'  {mirror}: {error}')
        except OSError as error:
            raise cannot_keep(name, folder, error) from None
    raise OSError(f'{title} is not on this machine and {name} could not be downloaded:\n'
                  + '\n'.join(failures) + '\nConnect to the network and try again, or '
                  + advice.format(folder=folder))


def cannot_keep(name, folder, error):
    """Return the OSError that tells what to do when a file cannot be written."""
    return OSError(f'{name} cannot be kept in {folder}: {error}. Make room there, or set '
                   'D2L_EXT_DATA to a folder that can be written')
