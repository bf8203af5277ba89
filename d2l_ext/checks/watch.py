"""Whether training makes sense: numbers that broke, and dead starts."""
import math

from ..devices import mx
from .batches import batch_sums, check_sums

nd = mx.nd

_ADVICE = 'Try a smaller learning rate, or go back to the last checkpoint'

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50
# So many batches in a row with no logit other than 0 are no accident.
DEAD_AFTER = 5

DEAD_START = """\
dead start: every logit of the last {batches} batches is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once, and plain SGD cannot bring them back: the rest of this run will stay as it is. Cures: \
another seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before \
the last pooling."""


def check_finite(net, ctx, when, advice=_ADVICE):
    """Raise if a parameter is no finite number; a ReLU may hide that from the loss."""
    for name, param in net.collect_params().items():
        # x * 0 is 0 for a number, but NaN for NaN and for infinity. What is deferred has no data.
        if param._data and math.isnan((param.data(ctx) * 0).sum().asscalar()):
            raise FloatingPointError(f'{name} holds NaN or infinity {when}. {advice}')


class Watch:
    """Adds up what the batches of an epoch give, and looks now and then whether it makes sense."""

    def __init__(self, net, ctx, say):
        self.net, self.ctx, self.say = net, ctx, say
        self.zero_run = nd.zeros(1, ctx=ctx)  # batches since a logit was other than 0
        self.explained, self.num_classes = False, None  # a worker may never get an image

    def start(self, epoch):
        """Begin an epoch."""
        self.epoch, self.batches = epoch, 0
        self.loss = nd.zeros(1, ctx=self.ctx, dtype='float64')
        self.sums = nd.zeros(3, ctx=self.ctx, dtype='float64')

    def add(self, outputs):
        """Take in what a step returns; only now and then wait for it."""
        if not outputs:
            return
        previous, zero_run = self.loss, self.zero_run + 1
        for X, y, logits, l in outputs:
            self.loss = self.loss + l.sum().astype('float64').as_in_context(self.ctx)
            self.sums = self.sums + batch_sums(X, y, logits).as_in_context(self.ctx)
            zero_run = zero_run * (logits.abs().max() == 0).as_in_context(self.ctx)
        self.zero_run = zero_run
        self.num_classes = logits.shape[1]
        self.batches += 1
        # One batch computes while the next is prepared; more would only fill the memory.
        previous.wait_to_read()
        if self.batches % _LOOK_EVERY == 0:
            self.look(enough=DEAD_AFTER)

    def look(self, enough):
        """Return loss and right answers so far; raise on broken numbers, tell of a dead start."""
        right, outside, broken = (float(s) for s in self.sums.asnumpy())
        check_sums(outside, broken, self.num_classes)
        loss, zero_run = self.loss.asscalar(), int(self.zero_run.asscalar())
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {_ADVICE}')
        if zero_run >= enough and not self.explained and self._stuck():
            self.explained = True
            self.say(DEAD_START.format(batches=zero_run, classes=self.num_classes,
                                       loss=math.log(self.num_classes)), flush=True)
        return loss, right

    def end(self):
        """Return loss and right answers of the whole epoch, as :meth:`look` does."""
        # A single batch of zeros may come from weights that start at zero, and pass.
        return self.look(enough=max(2, min(DEAD_AFTER, self.batches)))

    def _stuck(self):
        """Return whether all gradients of the last batch are 0; logits alone may start at 0."""
        check_finite(self.net, self.ctx, f'in epoch {self.epoch}')
        return not any(param.grad(self.ctx).abs().max().asscalar()
                       for param in self.net.collect_params().values() if param._grad)
