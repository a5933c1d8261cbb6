"""Counts what a UNet really computes, whoever skips parts of it."""

from torch import nn

COUNTED = (nn.Conv2d, nn.Conv3d, nn.Linear)


class WorkMeter:
    """Context manager that adds up the multiply-adds of convolutions and linear layers."""

    def __init__(self, unet: nn.Module) -> None:
        self.macs = 0
        self._layers = [layer for layer in unet.modules() if isinstance(layer, COUNTED)]
        self._hooks: list = []

    def __enter__(self) -> "WorkMeter":
        self._hooks = [layer.register_forward_hook(self._count) for layer in self._layers]
        return self

    def __exit__(self, *_error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer, _inputs, output) -> None:
        self.macs += output.numel() * layer.weight[0].numel()
