"""The finder and loader of the CUDA libraries, and each message, on machines made of fake files."""
import os
import shutil

import pytest

from d2l_ext.hardware import cuda

FILES = [file for _, _, _, files in cuda.LIBRARIES for file in files]


class FakeDriver:
    """What ctypes makes of libcuda.so.1, for a version like 11020 and (name, major, minor)."""

    def __init__(self, version, gpus=(), error=0):
        self.version, self.gpus, self.error, self.started = version, gpus, error, False

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0 if self.version else 34  # CUDA_ERROR_STUB_LIBRARY

    def cuInit(self, flags):
        self.started = True
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device, i):
        device._obj.value = i
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = self.gpus[device][0].encode()
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.gpus[device][{75: 1, 76: 2}[attribute]]
        return 0


class Machine:
    """A site-packages folder with what is put into it, and a loader that knows no other files."""

    def __init__(self, site):
        self.site, self.driver, self.system, self.loaded, self.broken = site, None, [], [], []

    def install_wheel(self, name, size):
        (self.site / 'mxnet').mkdir(exist_ok=True)
        (self.site / 'mxnet' / 'libmxnet.so').write_bytes(bytes(size))
        info = self.site / f'{name.replace("-", "_")}-1.9.1.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1\n')
        (info / 'RECORD').write_text(f'mxnet/libmxnet.so,sha256=x,{size}\n')

    def install_libraries(self, without=()):
        for name, _, folder, files in cuda.LIBRARIES:
            if name not in without:
                lib = self.site / 'nvidia' / folder / 'lib'
                lib.mkdir(parents=True)
                for file in files:
                    (lib / file).touch()

    def load(self, name):
        name = str(name)
        if name == 'libcuda.so.1' and self.driver:
            return self.driver
        file = os.path.basename(name)
        if file in self.broken and name != file:
            raise OSError(f'{name}: file too short')
        if name not in self.system and not os.path.isfile(name):
            raise OSError(f'{name}: cannot open shared object file: No such file or directory')
        self.loaded.append(name)
        return None


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine; what the reader's own environment says is out of the way."""
    machine = Machine(tmp_path)
    monkeypatch.setattr(cuda, '_folders', lambda: [str(tmp_path / 'none'), str(tmp_path)])
    monkeypatch.setattr(cuda, '_load', machine.load)
    monkeypatch.setattr(cuda, '_said', set())
    for name in ('D2L_EXT_DEVICE', 'CUDA_VISIBLE_DEVICES', 'MXNET_USE_FUSION'):
        monkeypatch.setenv(name, '')  # so that monkeypatch undoes what prepare() sets
        monkeypatch.delenv(name)
    return machine


def good(machine, gpus=(('NVIDIA GeForce RTX 3060', 8, 6),), version=12020):
    machine.install_wheel('mxnet-cu112', 20)
    machine.install_libraries()
    machine.driver = FakeDriver(version, gpus)


# Finding and loading

def test_a_healthy_gpu_machine_loads_everything_in_order(machine, capsys):
    good(machine)
    cuda.prepare()
    assert [os.path.basename(path) for path in machine.loaded] == FILES
    assert all(path.startswith(str(machine.site)) for path in machine.loaded)
    assert not machine.driver.started  # a process that forks later must not have started CUDA
    problems, facts = cuda.check()
    assert problems == []
    assert facts.wheels == {'mxnet-cu112': '1.9.1'} and facts.in_place == 'mxnet-cu112'
    assert facts.driver == cuda.Driver((12, 2), (cuda.Gpu('NVIDIA GeForce RTX 3060', (8, 6)),))
    assert facts.libraries['nvidia-cudnn-cu11'] == str(
        machine.site / 'nvidia' / 'cudnn' / 'lib' / 'libcudnn.so.8')
    assert cuda.may_use_gpu(0, True)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('first, then', [
    ('libcublasLt.so.11', 'libcublas.so.11'), ('libcublas.so.11', 'libcusolver.so.11'),
    ('libcusparse.so.11', 'libcusolver.so.11'), ('libcublas.so.11', 'libcudnn_cnn_infer.so.8'),
    ('libcudnn_ops_infer.so.8', 'libcudnn_cnn_infer.so.8'),
    ('libcudnn_cnn_infer.so.8', 'libcudnn_cnn_train.so.8'),
    ('libcudnn_ops_train.so.8', 'libcudnn_cnn_train.so.8')])
def test_order_of_dependencies(first, then):
    assert FILES.index(first) < FILES.index(then)


def test_all_that_the_wheel_links_is_loaded():
    assert {'libcudart.so.11.0', 'libcublas.so.11', 'libcufft.so.10', 'libcurand.so.10',
            'libcusolver.so.11', 'libcudnn.so.8', 'libnccl.so.2', 'libnvrtc.so.11.2',
            'libnvToolsExt.so.1'} <= {files[-1] for _, _, _, files in cuda.LIBRARIES}


@pytest.mark.parametrize('with_driver', [False, True])
def test_the_cpu_wheel_loads_nothing(machine, with_driver, capsys):
    good(machine)
    shutil.rmtree(machine.site / 'mxnet_cu112-1.9.1.dist-info')
    machine.install_wheel('mxnet', 10)
    machine.driver = machine.driver if with_driver else None
    cuda.prepare()
    assert machine.loaded == []
    assert not cuda.may_use_gpu(0, False)
    problems, facts = cuda.check()
    assert problems == [] and facts.in_place == 'mxnet' and facts.libraries == {}
    assert bool(facts.driver) == with_driver
    assert capsys.readouterr() == ('', '')


def test_no_wheel_at_all(machine):
    cuda.prepare()
    assert cuda.check() == ([], cuda.Facts({}, None, {}, None))
    assert cuda.may_use_gpu(0, True)  # an MXNet built by hand: only trying tells


def test_system_cuda_is_used_where_pip_has_none(machine):
    good(machine)
    shutil.rmtree(machine.site / 'nvidia')
    machine.system = [files[-1] for _, _, _, files in cuda.LIBRARIES]
    cuda.prepare()
    assert machine.loaded == machine.system
    assert cuda.check()[0] == []


def test_pip_comes_before_the_system(machine):
    good(machine)
    machine.system = FILES
    cuda.prepare()
    assert not set(machine.loaded) & set(FILES)


def test_a_broken_file_of_pip_falls_back_to_the_system(machine):
    good(machine)
    machine.broken, machine.system = ['libnccl.so.2'], ['libnccl.so.2']
    cuda.prepare()
    assert machine.loaded[-1] == 'libnccl.so.2'


@pytest.mark.parametrize('version, expected', [(11020, '0'), (11070, '0'), (11080, None),
                                               (12040, None)])
def test_fused_kernels_are_off_where_the_driver_cannot_read_them(machine, version, expected):
    good(machine, version=version)
    cuda.prepare()
    assert os.environ.get('MXNET_USE_FUSION') == expected


def test_the_readers_own_setting_of_fusion_wins(machine, monkeypatch):
    good(machine, version=11040)
    monkeypatch.setenv('MXNET_USE_FUSION', '1')
    cuda.prepare()
    assert os.environ['MXNET_USE_FUSION'] == '1'


# Which GPUs the wheel runs on

@pytest.mark.parametrize('capability, expected', [
    ((3, 5), False), ((5, 0), True), ((5, 2), True), ((6, 1), True), ((7, 0), True),
    ((7, 5), True), ((8, 0), True), ((8, 6), True), ((8, 9), True), ((9, 0), False),
    ((10, 0), False), ((12, 0), False)])
def test_has_code_for(capability, expected):
    assert cuda.has_code_for(capability) is expected


# Messages. Each condition: how to make it true, what is said, what to type.

def no_driver(machine):
    good(machine)
    machine.driver = None


def old_driver(machine):
    good(machine, version=10020)


def both_wheels(machine):
    good(machine)
    machine.install_wheel('mxnet', 10)


def missing_library(machine):
    machine.install_wheel('mxnet-cu112', 20)
    machine.install_libraries(without=('nvidia-cudnn-cu11', 'nvidia-nccl-cu11'))
    machine.driver = FakeDriver(12020)


def half_a_package(machine):
    good(machine)
    (machine.site / 'nvidia/cublas/lib/libcublasLt.so.11').unlink()


def broken_library(machine):
    good(machine)
    machine.broken = ['libcufft.so.10']


def new_gpu(machine):
    good(machine, [('NVIDIA H100', 9, 0)])


def old_gpu(machine):
    good(machine, [('Tesla K80', 3, 7)])


def no_gpu(machine):
    good(machine, [])


def no_device_error(machine):
    good(machine)
    machine.driver = FakeDriver(12020, error=100)


def driver_fails(machine):
    good(machine)
    machine.driver = FakeDriver(12020, error=999)


def stub_driver(machine):
    good(machine)
    machine.driver = FakeDriver(0, error=34)


INSTALL = 'python -m pip install --force-reinstall --no-deps '
FATAL = [
    (no_driver, 'mxnet-cu112 is installed, but this machine has no NVIDIA driver: libcuda.so.1',
     'python -m pip uninstall -y mxnet-cu112\n    ' + INSTALL + 'mxnet==1.9.1\n'),
    (missing_library, 'nvidia-cudnn-cu11 (libcudnn.so.8: cannot open',
     INSTALL + 'nvidia-cudnn-cu11==8.9.6.50 nvidia-nccl-cu11==2.21.5'),
    (half_a_package, 'nvidia-cublas-cu11', INSTALL + 'nvidia-cublas-cu11==11.11.3.6'),
    (broken_library, 'file too short', INSTALL + 'nvidia-cufft-cu11==10.9.0.58'),
]
OTHER = [
    (old_driver, 'driver is too old: it knows CUDA 10.2, and mxnet-cu112 needs 11.2',
     'nvidia-smi'),
    (both_wheels, 'mxnet and mxnet-cu112 are both installed',
     'python -m pip uninstall -y mxnet mxnet-cu112\n'),
    (new_gpu, 'no code for GPU 0, NVIDIA H100: its compute capability is 9.0',
     'export D2L_EXT_DEVICE=cpu'),
    (old_gpu, 'no code for GPU 0, Tesla K80: its compute capability is 3.7',
     'export D2L_EXT_DEVICE=cpu'),
    (no_gpu, 'driver sees no GPU', 'nvidia-smi'),
    (no_device_error, 'driver sees no GPU', 'nvidia-smi'),
    (driver_fails, 'driver does not start: CUDA error 999', 'nvidia-smi'),
    (stub_driver, 'driver does not start: CUDA error 34', 'nvidia-smi'),
]


@pytest.mark.parametrize('make, what, fix', FATAL, ids=lambda value: getattr(value, '__name__', ''))
def test_what_keeps_mxnet_from_loading_is_said_before(machine, make, what, fix):
    make(machine)
    with pytest.raises(ImportError) as raised:
        cuda.prepare()
    assert what in str(raised.value) and fix in str(raised.value)
    problems, _ = cuda.check()
    assert [problem.fatal for problem in problems] == [True]
    assert what in problems[0].what and fix in problems[0].fix


@pytest.mark.parametrize('make, what, fix', OTHER, ids=lambda value: getattr(value, '__name__', ''))
def test_what_keeps_the_gpu_from_computing(machine, monkeypatch, capsys, make, what, fix):
    make(machine)
    cuda.prepare()  # MXNet itself can be imported
    for _ in range(2):
        assert cuda.may_use_gpu(0, make is not both_wheels) is False
    out, err = capsys.readouterr()
    assert out.count('Computing on the CPU') == 1 and what in out and fix in out
    assert err == ''
    monkeypatch.setenv('D2L_EXT_DEVICE', 'gpu')
    with pytest.raises(RuntimeError, match='D2L_EXT_DEVICE=gpu') as raised:
        cuda.may_use_gpu(0, make is not both_wheels)
    assert what in str(raised.value) and fix in str(raised.value)
    monkeypatch.setenv('D2L_EXT_DEVICE', 'cpu')
    assert cuda.may_use_gpu(0, True) is False
    assert capsys.readouterr() == ('', '')


def test_the_wheel_installed_last_is_in_place(machine):
    machine.install_wheel('mxnet', 10)
    good(machine)
    assert cuda.check()[1].in_place == 'mxnet-cu112'
    assert not cuda.may_use_gpu(0, True)
    machine.driver = None
    with pytest.raises(ImportError, match='both installed(.|\n)*no NVIDIA driver'):
        cuda.prepare()
    (machine.site / 'mxnet' / 'libmxnet.so').write_bytes(bytes(10))
    assert cuda.check()[1].in_place == 'mxnet'
    cuda.prepare()
    (machine.site / 'mxnet' / 'libmxnet.so').unlink()
    assert cuda.check()[1].in_place is None


def test_hidden_gpus(machine, monkeypatch, capsys):
    good(machine, [])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    assert not cuda.may_use_gpu(0, True)
    out = capsys.readouterr().out
    assert "CUDA_VISIBLE_DEVICES='-1' hides" in out and 'unset CUDA_VISIBLE_DEVICES' in out


def test_each_gpu_counts_for_itself(machine, capsys):
    good(machine, [('NVIDIA H100', 9, 0), ('NVIDIA A100', 8, 0)])
    assert cuda.may_use_gpu(1, True)
    assert capsys.readouterr().out == ''
    assert not cuda.may_use_gpu(0, True)
    assert not cuda.may_use_gpu(2, True)
    assert 'there is no GPU 2, the numbers end at 1' in capsys.readouterr().out


def test_the_cpu_wheel_where_a_gpu_is_demanded(machine, monkeypatch):
    machine.install_wheel('mxnet', 10)
    monkeypatch.setenv('D2L_EXT_DEVICE', 'gpu')
    with pytest.raises(RuntimeError, match=r'on the CPU only(.|\n)*-r \.requirements/gpu\.txt'):
        cuda.may_use_gpu(0, False)


def test_device_wish(monkeypatch):
    monkeypatch.delenv('D2L_EXT_DEVICE', raising=False)
    assert cuda.device_wish() == 'auto'
    for wish in ('auto', 'cpu', 'gpu'):
        monkeypatch.setenv('D2L_EXT_DEVICE', wish)
        assert cuda.device_wish() == wish
    monkeypatch.setenv('D2L_EXT_DEVICE', 'GPU')
    with pytest.raises(ValueError, match="'auto', 'cpu' or 'gpu', not 'GPU'"):
        cuda.may_use_gpu(0, True)
