"""Devices and precision, on made-up machines."""
import numpy as np
import pytest

from d2l_ext import devices
from d2l_ext.devices import mx
from d2l_ext.hardware import processor


def test_try_gpu_without_cuda(monkeypatch):
    monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda self, name: name != 'CUDA')
    monkeypatch.setattr(mx, 'gpu', None)  # must not even be asked for
    assert devices.try_gpu() == devices.try_gpu(3) == mx.cpu()


def test_try_gpu_asks_for_the_given_one(monkeypatch):
    monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda self, name: True)
    monkeypatch.setattr(mx, 'gpu', lambda i: mx.cpu(10 + i))  # works, and is not cpu()
    assert devices.try_gpu() == mx.cpu(10) != mx.cpu()
    assert devices.try_gpu(np.int64(3)) == mx.cpu(13)


def test_try_gpu_that_fails_at_its_first_operation(monkeypatch):
    def fail(*args, **kwargs):
        raise mx.MXNetError('no kernel image is available for execution on the device')

    monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda self, name: True)
    monkeypatch.setattr(mx.nd, 'ones', fail)
    assert devices.try_gpu() == mx.cpu()


@pytest.mark.parametrize('text, expected', [
    ('model name : A\nflags\t\t: fpu avx512_bf16 sse2\n', True),
    ('flags\t\t: fpu amx_bf16 amx_tile', True),
    ('flags\t\t: fpu avx512f avx512_bf16x avx2', False),
    ('', False),
    (None, False),  # no such file
])
def test_has_bfloat16(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(processor, '_CPUINFO', tmp_path / 'cpuinfo')
    if text is not None:
        (tmp_path / 'cpuinfo').write_text(text)
    assert processor.has_bfloat16() is expected
    assert (processor.processor() == 'A') is ('model name' in (text or ''))


@pytest.mark.parametrize('precision, ctx, possible, expected', [
    ('auto', mx.cpu(), True, 'bfloat16'),
    ('auto', mx.cpu(), False, 'float32'),
    ('auto', mx.gpu(), True, 'float32'),
    ('float32', mx.cpu(), True, 'float32'),
    ('float32', mx.gpu(), False, 'float32'),
    ('bfloat16', mx.cpu(), True, 'bfloat16'),
    ('bfloat16', mx.cpu(), False, 'does not work on this processor'),
    ('bfloat16', mx.gpu(), True, 'does not work on a GPU'),
    ('float16', mx.cpu(), True, 'does not work on a CPU'),
    ('float16', mx.gpu(), True, 'float16'),
    ('float8', mx.cpu(), True, "bfloat16, float16, not 'float8'"),
    (None, mx.cpu(), True, 'bfloat16, float16, not None'),
])
def test_resolve_precision(monkeypatch, precision, ctx, possible, expected):
    monkeypatch.setattr(devices, 'has_bfloat16', lambda: possible)
    if ' ' in expected:
        with pytest.raises(ValueError, match=expected):
            devices.resolve_precision(precision, ctx)
    else:
        assert devices.resolve_precision(precision, ctx) == expected
