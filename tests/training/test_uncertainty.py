"Ellipses by hand, covariances recovered from drawn errors, and what the networks that ship promise."

import math

import numpy as np
import pytest
import torch

from subpixel_nb.codec.decoding import Fit, gaussian_fit
from subpixel_nb.codec.encoding import encode
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.training.loop import predict
from subpixel_nb.training.recipe import build_network, configure
from subpixel_nb.training.uncertainty import (
    Covariances,
    FittedFaces,
    fit_faces,
    held_shares,
    learn_covariances,
    squared_mahalanobis,
)


def random_fits(count: int, points: int = 3, seed: int = 0) -> Fit:
    "Fits whose amplitudes and sigmas vary; their own covariances are of no use."
    rng = torch.Generator().manual_seed(seed)
    amplitude, sigma = (
        0.2 + 0.8 * torch.rand(count, points, generator=rng),
        1 + torch.rand(count, points, generator=rng),
    )
    return Fit(torch.zeros(count, points, 2), amplitude, sigma, torch.eye(2).expand(count, points, 2, 2), amplitude)


def drawn_errors(truth: Covariances, fit: Fit, seed: int = 1) -> torch.Tensor:
    "Gaussian errors (n, K, 2) with the covariances that `truth` gives for the fits."
    noise = torch.randn(*fit.amplitude.shape, 2, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.linalg.cholesky(truth(fit).double()) @ noise)[..., 0]


TRUTH = Covariances(
    torch.tensor([[[4.0, 1.0], [1.0, 2.0]], [[0.2, 0.0], [0.0, 0.2]], [[1.0, -0.9], [-0.9, 1.0]]]), (-3.0, 1.0)
)


def test_mahalanobis_is_that_of_the_inverse():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(50, 3, 2, 2))
    covariance, off = root @ root.swapaxes(-1, -2) + 0.1 * np.eye(2), rng.normal(size=(50, 3, 2))
    square = squared_mahalanobis(torch.from_numpy(off), torch.from_numpy(covariance))
    assert square.numpy() == pytest.approx(np.einsum('nki,nkij,nkj->nk', off, np.linalg.inv(covariance), off))
    covariance[:10, 0] = np.inf
    assert squared_mahalanobis(torch.from_numpy(off), torch.from_numpy(covariance))[:10, 0].isnan().all()


def test_held_shares_by_hand():
    "The ellipse of 50 % is d² < 2 ln 2, that of 90 % is d² < 2 ln 10."
    square = torch.tensor([0.0, 1.3, 1.4, 4.6, 4.7, math.nan])
    assert held_shares(square, [0.5, 0.9]) == [2 / 5, 4 / 5]


def test_learnt_covariances_are_those_that_drew_the_errors():
    fit = random_fits(3000)
    seen = FittedFaces(fit, drawn_errors(TRUTH, fit), torch.ones(3000, 3, dtype=torch.bool))
    found = learn_covariances(seen)
    assert found.powers == pytest.approx(TRUTH.powers, abs=0.2)
    assert found.base.flatten().tolist() == pytest.approx(TRUTH.base.flatten().tolist(), rel=0.15, abs=0.05)
    other = random_fits(3000, seed=5)
    square = squared_mahalanobis(drawn_errors(TRUTH, other, 6), found(other))
    assert held_shares(square, [0.5, 0.95]) == pytest.approx([0.5, 0.95], abs=0.02)


def test_points_that_do_not_count_do_not_count():
    fit, errors = random_fits(400), None
    errors, visible = drawn_errors(TRUTH, fit), torch.ones(400, 3, dtype=torch.bool)
    alone = learn_covariances(FittedFaces(fit, errors, visible))
    visible[::2] = False
    half = learn_covariances(FittedFaces(fit, errors.where(visible[..., None], 1e6), visible))
    assert half.base[0, 0, 0] == pytest.approx(alone.base[0, 0, 0].item(), rel=0.3)
    with pytest.raises(ValueError, match='a landmark has no visible point with a peak; give more faces'):
        learn_covariances(FittedFaces(fit, errors, torch.tensor([True, True, False]).expand(400, 3)))


def test_numbers_survive_the_file():
    back = Covariances.from_dict(TRUTH.as_dict())
    assert torch.allclose(back.base, TRUTH.base) and back.powers == TRUTH.powers


def test_no_peak_no_ellipse():
    "A flat heatmap has no fit; its covariance stays infinite, and the others are finite."
    maps = torch.stack([encode(torch.tensor([[16.2, 9.7]]), 32)[0], torch.zeros(32, 32), torch.rand(32, 32) * 0.1])[
        None
    ]
    found = TRUTH(gaussian_fit(maps))
    assert found[0, 0].isfinite().all() and not found[0, 1].isfinite().all()


def test_fits_of_faces_are_those_of_training_pixels():
    "The errors, times the stride, are those of lesson 4.4's `predict`."
    config = configure(dataset='synthetic', size=64, depth=2, width=8, stacks=1)
    net, faces = build_network(config, 68), synthetic_faces(3, size=64)
    seen = fit_faces(net, faces)
    points = predict(net, faces, decoders=['gaussian'])[0]['gaussian']
    assert torch.allclose(4 * seen.off, faces.points.double() - points.double(), atol=1e-3)
    assert not seen.visible[~faces.visible].any()
