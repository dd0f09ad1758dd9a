"What the tests of Eq. 6 and of the rivals share: random faces, their views, and the loss of a method."

import torch

from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import flip_permutation
from subpixel_nb.model.augmentation import View, build_views, draw_views, random_view
from subpixel_nb.model.rivals import METHODS, Method
from subpixel_nb.model.siamese import LossOptions, Truth

SWAP = flip_permutation([(0, 1), (2, 3)], 5)


def seen_as(points: torch.Tensor, visible: torch.Tensor, seed: int, permutation=SWAP, size: int = 256) -> View:
    "A random view of faces without a picture; `points` in px of the upright view."
    margin = size * 5 // 16
    images = torch.zeros(len(points), 3, size + 2 * margin, size + 2 * margin, dtype=torch.uint8)
    views = build_views('paper', size)
    drawn = draw_views(views, images.shape, size, seed)
    return random_view(views, drawn, images, points + margin, visible, permutation, size)


def two_views(count: int = 16, seed: int = 0):
    "Faces, their mask, two random views, and what a perfect network answers each."
    g = torch.Generator().manual_seed(seed)
    points, visible = torch.rand(count, 5, 2, generator=g) * 130 + 63, torch.ones(count, 5, dtype=torch.bool)
    views = [seen_as(points, visible, 2 * seed + i) for i in range(2)]
    return points, visible, views, [encode(v.points, sigma=1.5 * v.scale) for v in views]


def training_loss(
    outputs, views, points, visible, permutation, method: Method, offsets=None, count=None, **options
) -> torch.Tensor:
    "The loss of a method, with the targets that it draws."
    truth = Truth(points, visible, permutation, count)
    return method.loss(outputs, views, truth, LossOptions(mode=method.mode, **options), offsets)


__all__ = ['METHODS', 'SWAP', 'seen_as', 'training_loss', 'two_views']
