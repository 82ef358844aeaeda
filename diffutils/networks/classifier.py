"""A small classifier: the judge of generated images, and the features that sets of images are compared in."""

from torch import Tensor, nn


def _layer(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.ReLU())


class Classifier(nn.Module):
    """Convolutions down to 4 x 4 pixels, an average over them (the features), and a linear layer.

    ``(B, channels, size, size)`` in [-1, 1] to logits ``(B, classes)``; :meth:`features` gives ``(B, 4 * width)``.
    It holds batch statistics: call ``eval()`` before it judges. Raises ``ValueError`` for a size that is no power of
    two from 8 to 256, and from ``features`` and ``forward`` for images of another shape.
    """

    def __init__(self, size: int, channels: int = 1, width: int = 32, classes: int = 10):
        super().__init__()
        if size not in (8, 16, 32, 64, 128, 256):
            raise ValueError(f"size: must be a power of two from 8 to 256, got {size}")
        self.size, self.channels = size, channels
        layers, c = [_layer(channels, width, 2 if size > 16 else 1)], width
        grid = size // 2 if size > 16 else size
        while grid > 4:
            wider = min(2 * c, 4 * width)
            layers += [_layer(c, c), _layer(c, wider, 2)]
            c, grid = wider, grid // 2
        layers += [_layer(c, 4 * width)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """The average of the last feature map, ``(B, 4 * width)``: what Fréchet distances are computed from."""
        if x.shape[1:] != (self.channels, self.size, self.size):
            expected = f"(B, {self.channels}, {self.size}, {self.size})"
            raise ValueError(f"x: this network takes {expected}, got {tuple(x.shape)}")
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: ``(B, channels, size, size)`` to ``(B, classes)``."""
        return self.head(self.features(x))
