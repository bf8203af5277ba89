"""Type README's commands on fresh systems: python -m tests.systems.

For each system debootstrap makes a root folder with Python and nothing else that is not essential:
no compiler, no OpenMP. An ordinary user gets a clone of this repository's last commit there, makes
a virtual environment as README says, and types the command. At the end stand rows for README.

Needs Linux, root rights, debootstrap and a network. Nothing is installed on this machine.
"""
import argparse
import datetime
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
SYSTEMS = ('bookworm', 'trixie', 'sid')  # Python 3.11, 3.13 and 3.14 in 2026
VENV = 'python3 -m venv .venv && . .venv/bin/activate'
ADD_USER, HOME = 'useradd --create-home reader', 'home/reader'
# How this machine reaches the package index holds there, too; and how threads wait, if it is busy.
_PASSED = re.compile('PIP_(CERT|DEFAULT_TIMEOUT|INDEX_URL|PROXY)|SSL_CERT_FILE|REQUESTS_CA_BUNDLE'
                     '|(https?|no)_proxy|OMP_WAIT_POLICY', re.IGNORECASE)


def missing():
    """Return what this machine lacks to make root folders, or None."""
    if not sys.platform.startswith('linux') or os.geteuid() != 0:
        return 'needs root rights on Linux'
    tools = [tool for tool in ('debootstrap', 'unshare', 'git') if not shutil.which(tool)]
    return f'needs {" and ".join(tools)}' if tools else None


def command(name):
    """Return README's command that stands behind the comment of this name, 'run' or 'test'."""
    return re.search(rf'<!-- {name} -->\n```bash\n(.*?)\n```\n', README, re.DOTALL)[1]


def make_root(system, folder, bases=None):
    """Make a root folder with a clone in it that belongs to the ordinary user.

    Parameters
    ----------
    system : str
        Debian's name of the release.
    folder : pathlib.Path
        The new root folder.
    bases : pathlib.Path, optional
        Folder that keeps each system as debootstrap made it, so that it is made once.
    """
    base = bases / system if bases else folder
    if not base.exists():
        subprocess.run(['debootstrap', '--variant=minbase',
                        '--include=python3,python3-venv,ca-certificates', system, base],
                       check=True, stdout=subprocess.DEVNULL)
    if base != folder:
        subprocess.run(['cp', '-a', f'{base}/.', folder], check=True)
    for value in passed().values():
        if os.path.isfile(value):  # a certificate
            target = folder / value.lstrip('/')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(value, target)
    subprocess.run(['chroot', folder, *ADD_USER.split()], check=True)
    subprocess.run(['git', 'clone', '--quiet', REPOSITORY, folder / HOME / 'd2l_ext'], check=True)
    subprocess.run(['chown', '-R', '1000:1000', folder / HOME], check=True)


def passed():
    """Return the variables of this machine, a dict, that hold in the root folders, too."""
    return {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}


def run(root, script, **variables):
    """Let the ordinary user run a script of bash in the clone; print and return what it prints.

    Parameters
    ----------
    root : pathlib.Path
        The root folder.
    script : str
        What to type.
    **variables
        More of the environment.

    Returns
    -------
    status : int
        The exit status.
    text : str
        Both streams together.
    """
    variables = {'HOME': f'/{HOME}', 'PATH': '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
                 **passed(), **variables}
    mounts = {'/proc': '-t proc proc', '/dev': '--rbind /dev', '/sys': '--rbind /sys'}
    if os.environ.get('D2L_EXT_DATA'):
        variables['D2L_EXT_DATA'] = '/data'
        mounts['/data'] = '--bind ' + shlex.quote(os.environ['D2L_EXT_DATA'])
        (root / 'data').mkdir(exist_ok=True)
    # In a namespace of its own: the mounts and all processes are gone when it ends.
    lines = [f'mount {what} {shlex.quote(f"{root}{where}")}' for where, what in mounts.items()]
    lines.append('exec ' + shlex.join([
        'chroot', '--userspec=1000:1000', str(root), 'env', '-i',
        *(f'{name}={value}' for name, value in variables.items()),
        'bash', '-euo', 'pipefail', '-c', f'cd /{HOME}/d2l_ext\n{script}']))
    with subprocess.Popen(
            ['unshare', '--mount', '--pid', '--fork', '--kill-child', 'bash', '-ec',
             '\n'.join(lines)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True) as process:
        text = ''
        for line in process.stdout:
            print(line, end='', flush=True)
            text += line
    return process.returncode, text


def try_system(system, folder, bases, name):
    """Return whether README's command works on a system, and a row for its table, a str."""
    make_root(system, folder, bases)
    label = re.search('PRETTY_NAME="(.*)"', (folder / 'etc/os-release').read_text())[1]
    _, python = run(folder, 'python3 --version')
    print(f'== {label}, {python.strip()}: {command(name)}', flush=True)
    start = time.time()
    status, text = run(folder, f'{VENV}\n{command(name)}')
    result = f'{time.time() - start:.0f} s' if status == 0 else f'exit status {status}'
    counts = re.findall(r'^=+ (.*(?:passed|failed).*) in .*=+$', text, re.MULTILINE)
    return status == 0, (f'| {label}, minimal | {python.split()[1]} | {datetime.date.today()} '
                         f'| {name}: {", ".join([result, *counts])} |')


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.systems',
                                     description=__doc__.partition(': python')[0] + '.',
                                     epilog=__doc__.partition('\n\n')[2])
    parser.add_argument('systems', nargs='*', metavar='SYSTEM', default=SYSTEMS,
                        help=f'releases of Debian; by default {", ".join(SYSTEMS)}')
    parser.add_argument('--command', choices=('run', 'test'), default='run',
                        help="which of README's commands (default: run)")
    parser.add_argument('--bases', type=pathlib.Path, metavar='FOLDER',
                        help='keep the fresh systems here, and use those that are here')
    args = parser.parse_args()
    if missing():
        parser.exit(2, f'error: {missing()}\n')
    assert VENV in README
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # the ordinary user must get through
        results = [try_system(system, pathlib.Path(folder, system), args.bases, args.command)
                   for system in args.systems]
    print('', *(row for _, row in results), sep='\n')
    return 0 if all(worked for worked, _ in results) else 1


if __name__ == '__main__':
    sys.exit(main())
