"""The CUDA libraries with the system's own loader, on stub libraries that gcc builds."""
import ctypes
import json
import os
import shutil
import subprocess
import sys

import pytest
from test_cuda import Machine

from d2l_ext.hardware import cuda

STUB_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
static int number(const char *name) { return atoi(getenv(name)); }
int cuDriverGetVersion(int *version) { *version = number("STUB_VERSION"); return 0; }
int cuInit(unsigned flags) { return number("STUB_ERROR"); }
int cuDeviceGetCount(int *count) { *count = number("STUB_COUNT"); return 0; }
int cuDeviceGet(int *device, int i) { *device = i; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    return snprintf(name, size, "Stub GPU") < 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = number(attribute == 75 ? "STUB_MAJOR" : "STUB_MINOR"); return 0; }
"""

PROBE = """
import ctypes, importlib.util, json, sys
_, module, site = sys.argv
spec = importlib.util.spec_from_file_location('cuda', module)
cuda = sys.modules['cuda'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
sys.path.append(site)
result = {}
for step, call in (('before', lambda: ctypes.CDLL(site + '/mxnet/libmxnet.so')),
                   ('prepare', cuda.prepare),
                   ('after', lambda: ctypes.CDLL(site + '/mxnet/libmxnet.so'))):
    try:
        call()
        result[step] = ''
    except (ImportError, OSError) as error:
        result[step] = str(error)
problems, facts = cuda.check()
result['problems'] = [problem.what for problem in problems]
result['libraries'] = {name: str(found) for name, found in facts.libraries.items()}
result['driver'] = facts.driver and {
    **facts.driver._asdict(), 'gpus': [gpu._asdict() for gpu in facts.driver.gpus]}
print(json.dumps(result))
"""


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
    """A folder site/ with real, empty libraries linked as NVIDIA's are, and one driver/."""
    if not sys.platform.startswith('linux') or not shutil.which('gcc'):
        pytest.skip('needs Linux and gcc to build stub libraries')
    folder = tmp_path_factory.mktemp('compiled')
    site, driver = folder / 'site', folder / 'driver'
    driver.mkdir()
    site.mkdir()
    (folder / 'empty.c').touch()
    (folder / 'driver.c').write_text(STUB_DRIVER)

    def build(path, source='empty.c', needs=()):
        subprocess.run(
            ['gcc', '-shared', '-fPIC', '-o', str(path), str(folder / source),
             f'-Wl,-soname,{path.name},--no-as-needed,--allow-shlib-undefined', *map(str, needs)],
            check=True)
        return path

    built = {}
    needs = {'libcublas.so.11': ['libcublasLt.so.11'],
             'libcusolver.so.11': ['libcublas.so.11', 'libcublasLt.so.11', 'libcusparse.so.11'],
             'libcudnn_cnn_infer.so.8': ['libcudnn_ops_infer.so.8', 'libcublas.so.11'],
             'libcudnn_ops_train.so.8': ['libcudnn_ops_infer.so.8'],
             'libcudnn_cnn_train.so.8': ['libcudnn_ops_infer.so.8', 'libcudnn_cnn_infer.so.8',
                                         'libcudnn_ops_train.so.8']}
    for _, _, package, files in cuda.LIBRARIES:
        lib = site / 'nvidia' / package / 'lib'
        lib.mkdir(parents=True)
        for file in files:
            built[file] = build(lib / file, needs=[built[name] for name in needs.get(file, ())])
    build(driver / 'libcuda.so.1', 'driver.c')
    Machine(site).install_wheel('mxnet-cu112', 1)
    wheel_needs = [built[files[-1]] for _, _, package, files in cuda.LIBRARIES
                   if package != 'cusparse']
    build(site / 'mxnet' / 'libmxnet.so', needs=[*wheel_needs, driver / 'libcuda.so.1'])
    return folder


def probe(folder, site='site', paths=('driver',), version=12020, count=1, capability=(8, 6),
          error=0):
    variables = {'STUB_VERSION': version, 'STUB_COUNT': count, 'STUB_MAJOR': capability[0],
                 'STUB_MINOR': capability[1], 'STUB_ERROR': error,
                 'LD_LIBRARY_PATH': os.pathsep.join(str(folder / path) for path in paths)}
    # -I and -S: no packages but those in the site folder.
    result = subprocess.run(
        [sys.executable, '-I', '-S', '-c', PROBE, cuda.__file__, str(folder / site)],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def test_the_loader_takes_what_prepare_loaded(compiled):
    result = probe(compiled)
    assert 'cannot open shared object file' in result['before']
    assert result['prepare'] == result['after'] == ''
    assert result['problems'] == []
    assert result['driver'] == {
        'version': [12, 2], 'error': 0, 'gpus': [{'name': 'Stub GPU', 'capability': [8, 6]}]}


def test_the_loader_without_a_driver(compiled):
    if shutil.which('nvidia-smi'):
        pytest.skip('this machine has an NVIDIA driver')
    result = probe(compiled, paths=())
    assert 'no NVIDIA driver' in result['prepare'] and 'libcuda.so.1' in result['after']
    assert result['driver'] is None


@pytest.mark.parametrize('settings, what', [
    ({'version': 11010}, 'too old'), ({'capability': (9, 0)}, 'no code for GPU 0, Stub GPU'),
    ({'count': 0}, 'no GPU'), ({'error': 100}, 'no GPU'), ({'error': 803}, 'error 803')])
def test_what_the_stub_driver_says(compiled, settings, what):
    result = probe(compiled, **settings)
    assert result['after'] == ''
    assert len(result['problems']) == 1 and what in result['problems'][0]


def test_libraries_of_the_system_and_a_missing_one(compiled, tmp_path):
    shutil.copytree(compiled / 'site', tmp_path / 'site')
    os.symlink(compiled / 'driver', tmp_path / 'driver')
    system = tmp_path / 'system'
    system.mkdir()
    nvidia = tmp_path / 'site' / 'nvidia'
    # As CUDA's own packages lay them out: a link to a file with the full version.
    (nvidia / 'nccl/lib/libnccl.so.2').rename(system / 'libnccl.so.2.8.4')
    os.symlink('libnccl.so.2.8.4', system / 'libnccl.so.2')
    result = probe(tmp_path, paths=('driver', 'system'))
    assert result['prepare'] == result['after'] == ''
    assert result['libraries']['nvidia-nccl-cu11'] == str(system / 'libnccl.so.2.8.4')
    (system / 'libnccl.so.2').unlink()
    result = probe(tmp_path, paths=('driver', 'system'))
    assert 'nvidia-nccl-cu11==2.21.5' in result['prepare']
    assert 'libnccl.so.2' in result['after']


def test_a_library_is_found_where_the_loader_found_it():
    if not os.path.exists('/proc/self/maps'):
        pytest.skip('needs /proc')
    ctypes.CDLL('libm.so.6')
    assert os.path.isfile(cuda._where('libm.so.6'))
    assert cuda._where('libnosuch.so.1') == 'libnosuch.so.1'
