"""PyTorch's side: the section's network, its loops, and the best of its settings.

PyTorch is for comparison only; where it is not installed, its rows are left out.
"""
import functools
import importlib
import importlib.util
import itertools

from .peers import LR, Timed
from .turns import Failed, fresh

SETTINGS = {
    f'{precision}, {layout}, {mode}': {'precision': precision, 'layout': layout, 'mode': mode}
    for precision, layout, mode in itertools.product(
        ('float32', 'bfloat16'), ('contiguous', 'channels_last'), ('eager', 'compile'))}


def installed():
    """Return whether PyTorch can be imported."""
    return importlib.util.find_spec('torch') is not None


def start():
    """Import PyTorch, with as many threads as d2l_ext takes, and return it."""
    from d2l_ext.hardware.threads import num_threads

    threads = num_threads()
    torch = importlib.import_module('torch')  # no dependency
    torch.set_num_threads(threads)
    return torch


def section_net(torch):
    """Return the network of section 7.3."""
    nn = torch.nn

    def nin_block(num_inputs, num_channels, kernel_size, strides, padding):
        return nn.Sequential(
            nn.Conv2d(num_inputs, num_channels, kernel_size, strides, padding), nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 1), nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 1), nn.ReLU())

    return nn.Sequential(
        nin_block(1, 96, 11, 4, 0), nn.MaxPool2d(3, 2),
        nin_block(96, 256, 5, 1, 2), nn.MaxPool2d(3, 2),
        nin_block(256, 384, 3, 1, 1), nn.MaxPool2d(3, 2), nn.Dropout(0.5),
        nin_block(384, 10, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _layout(torch, layout):
    return {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}[layout]


def train(num_batches, batch_size, resize, precision, layout, mode):
    """Train without an input pipeline; bfloat16 is autocast, so that parameters stay float32."""
    torch = start()
    layout = _layout(torch, layout)
    net = section_net(torch).to(memory_format=layout)
    for param in net.parameters():
        if param.ndim > 1:
            torch.nn.init.xavier_uniform_(param)
    forward = torch.compile(net, dynamic=False) if mode == 'compile' else net
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=LR), torch.nn.CrossEntropyLoss()
    X = torch.rand(batch_size, 1, resize, resize).to(memory_format=layout)
    y = torch.randint(0, 10, (batch_size,))
    timed = Timed([(X, y)] * (num_batches + 2), num_batches, batch_size)
    for X, y in timed:
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            l = loss(forward(X), y)
        l.backward()
        optimizer.step()
    return {'images_per_second': timed.images_per_second, 'threads': torch.get_num_threads(),
            'precision': precision}


def classifier(weights, precision, layout, mode):
    """Return the network as a function from float32 images to logits, for inference only.

    Images and logits are NumPy arrays, `weights` the file of `save_params`. Weights are cast, too.
    Compiled, they count as constants, so that they are packed once.
    """
    import numpy as np

    torch = start()
    importlib.import_module('torch._inductor.config').freezing = True
    dtype, layout = getattr(torch, precision), _layout(torch, layout)
    net = section_net(torch).eval()
    net.load_state_dict(dict(zip(net.state_dict(), map(torch.tensor, np.load(weights).values()))))
    net = net.to(dtype=dtype, memory_format=layout)
    forward = torch.compile(net, dynamic=False) if mode == 'compile' else net

    def classify(X):
        with torch.inference_mode():
            X = torch.from_numpy(X).to(dtype=dtype, memory_format=layout)
            return forward(X).float().numpy()

    return classify


def try_settings(function, keys, **arguments):
    """Call `function` once with each of SETTINGS, in processes of their own.

    Returns ``{setting: {key: value}}``, with the reason under 'failed' where one does not work.
    """
    tried = {}
    for name, setting in SETTINGS.items():
        try:
            result = fresh(function, **arguments, **setting)
            tried[name] = {key: result[key] for key in keys}
            said = ', '.join(f'{key} {value:.2f}' for key, value in tried[name].items())
        except Failed as error:  # such as a compiler that is not there
            tried[name] = {'failed': str(error).strip().splitlines()[-1]}
            said = f"failed: {tried[name]['failed']}"
        print(f'PyTorch, {name:36} {said}', flush=True)
    return tried


def best(tried, key, better=max):
    """Return the setting that has the best `key`, by default the highest, or None."""
    worked = {name: result[key] for name, result in tried.items() if key in result}
    return better(worked, key=worked.get) if worked else None


def turn(function, name, **arguments):
    """Return a function without arguments that takes a turn with the setting of that name."""
    return functools.partial(fresh, function, **arguments, **SETTINGS[name])
