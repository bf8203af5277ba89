"""The paper's CIFAR-10 network against PyTorch's layers: same weights, same outputs."""
import numpy as np
import pytest
from test_resources_pytorch import torch_nin_cifar10

from d2l_ext.devices import mx
from d2l_ext.studies.nets import nin_cifar10


# A port on the web pads and takes averages at last, one in a reading note pads and takes maxima,
# one in a lecture rounds up as the authors do.
@pytest.mark.parametrize('second_pooling, ceil_mode', [
    ('average', False), ('maximum', False), ('average', True), ('maximum', True)])
def test_the_same_weights_give_the_same_outputs(second_pooling, ceil_mode):
    torch = pytest.importorskip('torch')
    net = nin_cifar10(second_pooling=second_pooling, ceil_mode=ceil_mode)
    net.initialize(mx.init.MSRAPrelu(slope=0))
    X = mx.nd.random.normal(shape=(2, 3, 32, 32))
    logits = net(X).asnumpy()
    mx.nd.waitall()  # MXNet still arranges weights when an output is there
    port = torch_nin_cifar10(second_pooling, ceil_mode, batch_norm=False).eval()
    with torch.no_grad():
        port(torch.zeros(1, 3, 32, 32))  # now its lazy layers know their shapes
        names, ours = list(port.state_dict()), list(net.collect_params().values())
        assert len(names) == len(ours) == 18
        port.load_state_dict({name: torch.from_numpy(param.data().asnumpy())
                              for name, param in zip(names, ours)})
        expected = port(torch.from_numpy(X.asnumpy())).numpy()
    assert logits.shape == expected.shape == (2, 10) and abs(expected).max() > 0.01
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
