"""A Transformer that tells images apart: their patches are its tokens, and every patch sees every patch.

    h = W patch + b + position;   h = h + A(N(h));   h = h + F(N(h)) + ticks(N(h));   logits = head(N(h))

Shapes: B batch, C channels, H height, W width, P patch size, T patches (and the class token), D d_model, K classes.
(arXiv 2010.11929)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError, at_least
from ticks.models.block import Transformer
from ticks.models.heads import ClassificationHead
from ticks.models.initialise import STD, role


class Patches(nn.Module):
    """Images (B, C, H, W) -> their patches, row by row, each through one linear layer: (B, T, D)."""

    def __init__(self, patch_size: int, n_channels: int, d_model: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = role("input", nn.Linear(n_channels * patch_size**2, d_model))

    def forward(self, images_BxCxHxW: Tensor) -> Tensor:
        B, C, H, W = images_BxCxHxW.shape
        P = self.patch_size
        parts = images_BxCxHxW.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5)
        return self.linear(parts.reshape(B, (H // P) * (W // P), C * P * P))


class VisionTransformer(Transformer):
    """Images (B, n_channels, *image_size) -> logits (B, n_classes). Takes what `Transformer` takes.

    `image_size` is (height, width), or one number for both, and `patch_size` divides it. `pooling` is "mean" or "max"
    over the patches, or "first": a class token stands before them then, and it answers. ArgumentError for sizes that do
    not fit, here and of images.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        n_channels: int,
        n_classes: int,
        patch_size: int = 4,
        pooling: str = "mean",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        at_least(1, image_height=height, image_width=width, n_channels=n_channels, patch_size=patch_size)
        if height % patch_size or width % patch_size:
            raise ArgumentError("patch_size", patch_size, f"must divide the images' {height} x {width} pixels")
        self.image_shape = (n_channels, height, width)
        self.patches = Patches(patch_size, n_channels, self.d_model)
        self.class_token = nn.Parameter(torch.zeros(self.d_model)) if pooling == "first" else None
        n_patches = (height // patch_size) * (width // patch_size)
        self.add_positions("position", n_patches + (self.class_token is not None))
        self.blocks = self.make_blocks(causal=False)
        self.final_norm = self.make_final_norm()
        self.head = ClassificationHead(self.d_model, n_classes, pooling=pooling, dropout=self.dropout.p)
        self.begin()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=STD)

    def forward(self, images_BxCxHxW: Tensor) -> Tensor:
        if images_BxCxHxW.shape[1:] != self.image_shape:
            shape, wanted = tuple(images_BxCxHxW.shape), ", ".join(map(str, self.image_shape))
            raise ArgumentError("images", shape, f"is their shape, and it must be (B, {wanted})")
        x_BxTxD = self.blocks(self.embed(images_BxCxHxW, self._tokens, self.position))
        return self.head(self.final_norm(x_BxTxD))

    def _tokens(self, images_BxCxHxW: Tensor) -> Tensor:
        x_BxTxD = self.patches(images_BxCxHxW)
        if self.class_token is None:
            return x_BxTxD
        return torch.cat([self.class_token.expand(x_BxTxD.shape[0], 1, -1), x_BxTxD], dim=1)
