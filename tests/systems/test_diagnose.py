"""What --diagnose prints, and its exit status, on machines made of fake files."""
import hashlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from test_cuda import FATAL, OTHER, FakeDriver, both_wheels, good, machine  # noqa: F401

from d2l_ext import devices, diagnose
from d2l_ext.hardware import cuda, threads
from d2l_ext.storage import fashion_mnist


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with nothing in it; no variable of the reader's counts."""
    home = tmp_path / 'home' / 'ada'
    home.mkdir(parents=True)
    monkeypatch.setenv('HOME', str(home))
    for name in diagnose._VARIABLES:
        if name != 'OMP_NUM_THREADS':
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, 'num_threads', threads.physical_cores)
    monkeypatch.setattr(devices, 'try_gpu', devices.mx.cpu)  # a real GPU does not count either
    return home


@pytest.fixture
def cpu(machine, home):  # noqa: F811
    """A healthy machine with the CPU wheel."""
    machine.install_wheel('mxnet', 10)
    return machine


def run(capsys):
    """Return the exit status and the text of a diagnosis that prints to standard output only."""
    status = diagnose.diagnose()
    out, err = capsys.readouterr()
    assert err == ''
    return status, out


def rows(text, title):
    return [line[12:] for line in text.splitlines() if line.startswith(f'{title} ')]


def test_a_healthy_cpu(cpu, capsys, monkeypatch):
    monkeypatch.setattr(fashion_mnist, 'download', None)  # nothing may be downloaded
    status, out = run(capsys)
    assert status == 0
    assert 'Problem' not in out and out.endswith('\nTraining can run, on cpu(0).\n')
    assert rows(out, 'Python')[0].startswith('.'.join(map(str, sys.version_info[:3])))
    assert rows(out, 'wheel') == ['mxnet 1.9.1, in use']
    assert rows(out, 'libraries') == ['none needed; mxnet-cu112 would need some']
    assert rows(out, 'driver') == ['no NVIDIA driver (libcuda.so.1 is not found)']
    assert rows(out, 'training') == ['a step works on cpu(0)']
    assert len(rows(out, 'threads')) == len(rows(out, 'MXNet')) == 1
    assert rows(out, 'bfloat16')[0].startswith('yes' if devices.has_bfloat16() else 'no')


def test_a_gpu_beside_the_cpu_wheel(cpu, capsys):
    cpu.driver = FakeDriver(12040, [('NVIDIA A100', 8, 0), ('NVIDIA H100', 9, 0)])
    status, out = run(capsys)
    assert status == 0
    assert rows(out, 'driver') == ['NVIDIA, knows CUDA 12.4, starts']
    assert rows(out, 'GPU') == [
        '0: NVIDIA A100, compute capability 8.0; mxnet-cu112 has code for it',
        '1: NVIDIA H100, compute capability 9.0; mxnet-cu112 has no code for it']


@pytest.mark.parametrize('make, what, fix', FATAL, ids=lambda value: getattr(value, '__name__', ''))
def test_mxnet_is_not_imported_where_that_must_fail(
        machine, home, capsys, monkeypatch, make, what, fix):  # noqa: F811
    make(machine)
    monkeypatch.setattr(diagnose, '_import_d2l_ext', None)
    status, out = run(capsys)
    assert status == 1 and out.endswith('\nTraining cannot run.\n')
    assert what in out and fix in out
    assert len(rows(out, 'library')) == len(cuda.LIBRARIES)


@pytest.mark.parametrize('make, what, fix', OTHER, ids=lambda value: getattr(value, '__name__', ''))
def test_a_gpu_that_cannot_be_used_leaves_the_cpu(
        machine, home, capsys, make, what, fix):  # noqa: F811
    make(machine)
    status, out = run(capsys)
    assert status == 0 and out.endswith('\nTraining can run, on cpu(0).\n')
    assert out.count(what) == 1 and fix in out


def test_libraries_are_shown_where_they_were_found(machine, home, capsys):  # noqa: F811
    good(machine)
    _, out = run(capsys)
    path = machine.site / 'nvidia' / 'nccl' / 'lib' / 'libnccl.so.2'
    assert f'nvidia-nccl-cu11: {path}' in rows(out, 'library')


def test_the_home_folder_is_not_named(cpu, home, capsys, monkeypatch):
    monkeypatch.setenv('D2L_EXT_DATA', str(home / 'data'))
    monkeypatch.setattr(sys, 'executable', str(home / 'venv' / 'bin' / 'python'))
    _, out = run(capsys)
    assert 'ada' not in out
    assert 'D2L_EXT_DATA=~/data' in out and '~/venv/bin/python' in out
    assert '~/data/fashion-mnist' in rows(out, 'data')[0]


def test_tidy_replaces_whole_folders_only(home):
    assert diagnose._tidy(f'{home} {home}/x {home}lovelace /mnt{home}') == (
        f'~ ~/x {home}lovelace /mnt{home}')


def write_archives(folder, monkeypatch):
    """Put four files into `folder` and make their checksums the published ones."""
    folder.mkdir(parents=True)
    for name in fashion_mnist.MD5:
        (folder / name).write_text(name)
    monkeypatch.setattr(fashion_mnist, 'MD5', {
        name: hashlib.md5((folder / name).read_bytes()).hexdigest()
        for name in fashion_mnist.MD5})


def test_data_of_the_readers_own(cpu, home, capsys, monkeypatch):
    monkeypatch.setenv('D2L_EXT_DATA', str(home / 'data'))
    folder = home / 'data' / 'fashion-mnist'
    write_archives(folder, monkeypatch)
    status, out = run(capsys)
    assert status == 0 and rows(out, 'data') == ['Fashion-MNIST in ~/data/fashion-mnist']
    (folder / 'train-images-idx3-ubyte.gz').write_text('short')
    status, out = run(capsys)
    assert status == 1 and rows(out, 'data') == ['Fashion-MNIST in ~/data/fashion-mnist, damaged']
    assert '    rm ~/data/fashion-mnist/train-images-idx3-ubyte.gz\n' in out


def test_data_in_mxnets_cache(cpu, home, capsys, monkeypatch):
    monkeypatch.setenv('MXNET_HOME', str(home / '.mxnet'))
    monkeypatch.setenv('D2L_EXT_DATA', str(home / 'empty'))
    folder = home / '.mxnet' / 'datasets' / 'fashion-mnist'
    write_archives(folder, monkeypatch)
    _, out = run(capsys)
    assert rows(out, 'data') == ['Fashion-MNIST in ~/.mxnet/datasets/fashion-mnist']
    (folder / 'train-images-idx3-ubyte.gz').write_text('short')
    status, out = run(capsys)
    assert status == 0 and 'not on this machine; a download' in rows(out, 'data')[0]
    assert '~/empty/fashion-mnist' in rows(out, 'data')[0]


@pytest.mark.parametrize('error, what, fix', [
    (OSError('libcudart.so.11.0: cannot open'), 'MXNet cannot be imported: OSError: libcudart',
     'python -m pip install --no-deps -r requirements.txt'),
    (ModuleNotFoundError("No module named 'mxnet'", name='mxnet'), 'Its files are gone',
     'python -m pip install --force-reinstall --no-deps mxnet==1.9.1')])
def test_mxnet_cannot_be_imported(cpu, capsys, monkeypatch, error, what, fix):
    def fail():
        raise error

    monkeypatch.setattr(diagnose, '_import_d2l_ext', fail)
    status, out = run(capsys)
    assert status == 1 and what in out and fix in out
    assert 'threads, bfloat16 and data are not checked' in out


def test_the_gpu_wheel_cannot_be_imported(machine, home, capsys, monkeypatch):  # noqa: F811
    good(machine)
    monkeypatch.setattr(diagnose, '_import_d2l_ext', lambda: 1 / 0)
    status, out = run(capsys)
    assert status == 1 and 'python -m pip install --no-deps -r .requirements/gpu.txt' in out


def test_mxnet_is_absent(machine, home, capsys, monkeypatch):  # noqa: F811
    def fail():
        raise ModuleNotFoundError("No module named 'mxnet'", name='mxnet')

    monkeypatch.setattr(diagnose, '_import_d2l_ext', fail)
    status, out = run(capsys)
    assert status == 1 and 'MXNet is not installed' in out
    assert 'pip install --no-deps -r requirements.txt' in out and rows(out, 'wheel') == ['no MXNet']


def test_too_few_threads(cpu, capsys, monkeypatch):
    monkeypatch.setattr(threads, 'num_threads', lambda: 1)
    monkeypatch.setattr(threads, 'physical_cores', lambda: 4)
    status, out = run(capsys)
    assert status == 0 and 'MXNet computes with 1 of 4 cores' in out
    assert 'unset OMP_NUM_THREADS' in out


def test_a_step_that_fails(cpu, capsys, monkeypatch):
    def fail(training, ctx):
        raise training.mx.MXNetError('CUDNN_STATUS_MAPPING_ERROR')

    monkeypatch.setattr(diagnose, '_train_one_step', fail)
    status, out = run(capsys)
    assert status == 1 and 'training fails: CUDNN_STATUS_MAPPING_ERROR' in out


def test_a_device_that_does_not_exist(cpu, capsys, monkeypatch):
    def try_gpu():
        return cuda.may_use_gpu(0, False) or devices.mx.cpu()

    monkeypatch.setattr(devices, 'try_gpu', try_gpu)
    monkeypatch.setenv('D2L_EXT_DEVICE', 'tpu')
    status, out = run(capsys)
    assert status == 1 and "must be 'auto', 'cpu' or 'gpu', not 'tpu'" in out
    monkeypatch.setenv('D2L_EXT_DEVICE', 'gpu')
    status, out = run(capsys)
    assert status == 1 and 'python -m pip install --no-deps -r .requirements/gpu.txt' in out


def test_gpu_demanded_and_two_wheels(machine, home, capsys, monkeypatch):  # noqa: F811
    both_wheels(machine)
    monkeypatch.setenv('D2L_EXT_DEVICE', 'gpu')
    monkeypatch.setattr(devices, 'try_gpu', lambda: cuda.may_use_gpu(0, False))
    status, out = run(capsys)
    assert status == 1 and out.count('are both installed') == 1
    assert 'unset D2L_EXT_DEVICE' in out


# The command itself, in its own process

def command(tmp_path, **modules):
    """Run the command where these modules have another content."""
    for name, content in modules.items():
        (tmp_path / f'{name}.py').write_text(content)
    environ = {name: value for name, value in os.environ.items()
               if not name.startswith('D2L_EXT')}
    return subprocess.run(
        [sys.executable, '-m', 'd2l_ext', '--diagnose'], cwd=str(ROOT),
        env={**environ, 'PYTHONPATH': str(tmp_path), 'D2L_EXT_DEVICE': 'cpu'},
        capture_output=True, text=True)


def test_the_command_on_a_machine_that_can_train(tmp_path):
    result = command(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'Training can run, on cpu(0).' in result.stdout and result.stderr == ''


@pytest.mark.parametrize('name, content, what', [
    ('mxnet', "raise OSError('libquadmath.so.0: cannot open shared object file')", 'libquadmath'),
    ('mxnet', "raise ModuleNotFoundError('No module named mxnet', name='mxnet')",
     'Its files are gone'),
    ('numpy', "raise ImportError('libgfortran.so.5: cannot open')", 'libgfortran')])
def test_the_command_survives_what_cannot_be_imported(tmp_path, name, content, what):
    result = command(tmp_path, **{name: content})
    assert result.returncode == 1 and result.stderr == ''
    assert what in result.stdout and 'Training cannot run.' in result.stdout
