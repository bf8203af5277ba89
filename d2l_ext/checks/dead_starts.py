"""Dead starts: the last ReLU is shut for every image, and no gradient can open it again."""
import math

from ..arguments import wrapped

# So many batches in a row with no logit other than 0 are no accident.
DEAD_AFTER = 5

DEAD_START = """\
dead start: every logit of the last {batches} batches is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once, and plain SGD cannot bring them back: the rest of this run will stay as it is. Cures: \
another seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before \
the last pooling."""


def is_dead(net, ctx):
    """Return whether all gradients of the last batch are 0; logits alone may start at 0."""
    return not any(param.grad(ctx).abs().max().asscalar()
                   for param in net.collect_params().values() if param._grad)


def told(batches, num_classes):
    """Return what a reader is told when so many batches have had no logit other than 0."""
    return wrapped(DEAD_START.format(batches=batches, classes=num_classes,
                                     loss=math.log(num_classes)))
