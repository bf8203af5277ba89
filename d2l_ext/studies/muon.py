"""The optimizer Muon: momentum whose steps change all directions of a layer equally."""
import numbers

from ..arguments import check_int, check_number, refusal
from ..devices import mx

nd = mx.nd

# Of the polynomial a s + b s^3 + c s^5, which Jordan tuned to bring any singular value s from near
# 0 to 1 close to 1 in five rounds; it then lies from about 0.7 to 1.2.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalized(matrix, num_rounds=5):
    """Return roughly the orthogonal factor of `matrix`: its singular vectors, with values near 1.

    Newton-Schulz iteration, X <- (A I + B G + C G^2) X with G = X X^T, as in Jordan and others,
    *Muon: An Optimizer for Hidden Layers in Neural Networks*, 2024. Of float32 and shape (rows,
    columns); what comes of zeros is zeros.
    """
    if not isinstance(matrix, nd.NDArray) or matrix.ndim != 2:
        raise refusal('matrix', matrix, 'an NDArray of shape (rows, columns)')
    num_rounds = check_int('num_rounds', num_rounds, 1)
    wide = matrix.shape[0] <= matrix.shape[1]
    X = matrix if wide else matrix.T
    X = X / nd.maximum(X.norm(), 1e-30)
    identity = nd.eye(X.shape[0], ctx=X.context)
    for _ in range(num_rounds):
        G = nd.dot(X, X, transpose_b=True)
        X = nd.dot(A * identity + B * G + C * nd.dot(G, G), X)
    return X if wide else X.T


@mx.optimizer.Optimizer.register
class Muon(mx.optimizer.Optimizer):
    """Nesterov momentum whose step for each layer is made orthogonal.

    Jordan and others, *Muon: An Optimizer for Hidden Layers in Neural Networks*, 2024. The weights
    of a layer are a matrix of outputs by inputs, those of a window side by side. Its step is
    multiplied by the square root of outputs / inputs, so that `learning_rate` is, roughly, by how
    much at most a step changes the root mean square of the outputs, for inputs with a root mean
    square of one (Yang, Simon and Bernstein, *A Spectral Condition for Feature Learning*, 2023). A
    bias moves by `learning_rate` in length.

    Of a `gluon.Trainer`: ``Trainer(net.collect_params(), Muon(0.01))``, or, once this module is
    imported, ``Trainer(net.collect_params(), 'muon', {'learning_rate': 0.01})``.

    Parameters
    ----------
    learning_rate : float
    momentum : float
        Of the running mean of gradients; at least 0 and below 1.
    **kwargs
        Of every MXNet optimizer, such as `lr_scheduler`, and `wd`, the weight decay: a step also
        shrinks weights by ``learning_rate * wd`` of themselves.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(self, learning_rate=0.01, momentum=0.95, **kwargs):
        super().__init__(learning_rate=check_number('learning_rate', learning_rate, 0), **kwargs)
        if not isinstance(momentum, numbers.Real) or not 0 <= momentum < 1:
            raise refusal('momentum', momentum, 'a number of at least 0 and below 1')
        self.momentum = momentum

    def create_state(self, index, weight):
        """Return the running mean of the gradients, zeros as yet."""
        return nd.zeros(weight.shape, ctx=weight.context, dtype=weight.dtype)

    def update(self, index, weight, grad, state):
        """Change `weight` and `state` in place by one step."""
        self._update_count(index)
        lr, wd = self._get_lr(index), self._get_wd(index)
        grad = grad * self.rescale_grad
        state[:] = self.momentum * state + (1 - self.momentum) * grad
        step = self.momentum * state + (1 - self.momentum) * grad  # Nesterov's: one ahead
        if step.ndim > 1:
            num_outputs, num_inputs = step.shape[0], step.size // step.shape[0]
            step = orthogonalized(step.reshape((num_outputs, num_inputs))).reshape(step.shape)
            step = step * (num_outputs / num_inputs)**0.5
        else:
            step = step / nd.maximum(step.norm(), 1e-30)
        weight[:] = (1 - lr * wd) * weight - lr * step
