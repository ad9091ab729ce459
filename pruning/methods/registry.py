"""How a mask is reached in the course of a training: six methods, each inside any pattern.

A method is a frozen set of parameters. It acts at a few steps of the training, through the
operations of :class:`pruning.targets.Targets`, and may add a penalty to the loss. What it must
remember it keeps as tensors in each target's ``state``, so a saved run goes on where it stopped.
Masks are changed by nothing but the pattern's projection, so every mask on the way is one of the
pattern.
"""

from pruning.methods.method import Gradual, Method, OneShot
from pruning.methods.mutation import Mest, RigL
from pruning.methods.penalties import Admm, GroupLasso

__all__ = ["METHODS", "Admm", "Gradual", "GroupLasso", "Mest", "Method", "OneShot", "RigL"]

METHODS: dict[str, type[Method]] = {
    method.kind: method for method in (OneShot, Gradual, Admm, GroupLasso, RigL, Mest)
}
"""Every method by its name in recipes."""
