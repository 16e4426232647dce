"""Augmentation of images through kornia, which is in the extra `vision`. One is any function of images (B, C, H, W).

To add one: a class here and a YAML in configs/data/augment/. It draws from torch's global generator, which is set for
each batch, and from nowhere else.
"""

from torch import Tensor

from ticks.arguments import ArgumentError, is_number, share


class ShiftRotate:
    """Each image turned by up to `degrees` either way and shifted by up to the share `shift` of its size, zeros coming
    in; with probability `erase` a rectangle of 2 to 20 percent of it is zero.

    ArgumentError for numbers that cannot be. ModuleNotFoundError without kornia.
    """

    def __init__(self, *, shift: float = 0.1, degrees: float = 10.0, erase: float = 0.0) -> None:
        share(shift=shift, erase=erase)
        if not is_number(degrees) or not 0 <= degrees <= 180:
            raise ArgumentError("degrees", degrees, "must be from 0 to 180")
        try:
            from kornia.augmentation import RandomAffine, RandomErasing
        except ImportError:
            raise ModuleNotFoundError('ShiftRotate needs kornia: pip install -e ".[vision]"') from None
        self.move = RandomAffine(degrees, translate=(shift, shift), p=1.0)
        self.erase = RandomErasing(scale=(0.02, 0.2), p=erase)

    def __call__(self, images_BxCxHxW: Tensor) -> Tensor:
        return self.erase(self.move(images_BxCxHxW))
