"The rivals' decoders against their own code. Each test skips where its package is not installed (README names them)."

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from subpixel_nb.codec.decoding import argmax, dark, decode, local_softargmax, peak, quarter, udp
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import from_heatmap


def submodule(package: str, name: str):
    "A module of an installed package without running the package's own __init__ (mmpose's asks for mmcv)."
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed: its decoder is not compared')
    pytest.importorskip('cv2', reason=f'{package} needs opencv')
    folder, at = spec.submodule_search_locations[0], f'_peer_{package}'
    for part in ['', *name.split('.')[:-1]]:
        if part:
            folder, at = f'{folder}/{part}', f'{at}.{part}'
        stub = types.ModuleType(at)
        stub.__path__ = [folder]
        sys.modules.setdefault(at, stub)
    return importlib.import_module(f'{at}.{name.rsplit(".", maxsplit=1)[-1]}')


@pytest.fixture
def maps() -> torch.Tensor:
    "40 slightly noisy maps over the whole frame, borders included."
    g = torch.Generator().manual_seed(0)
    clean = encode(from_heatmap(torch.rand(40, 2, generator=g) * 64 - 0.5))
    return clean + 0.02 * torch.rand(clean.shape, generator=g)


def inside(maps: torch.Tensor, margin: int) -> torch.Tensor:
    "Which peaks keep `margin` px from the border: at it the packages have rules of their own."
    x, y, _ = peak(maps)
    return (x >= margin) & (x < 64 - margin) & (y >= margin) & (y < 64 - margin)


def test_face_alignment_is_quarter_offset(maps):
    "FAN answers 1-based pixels less a half: pixel edges, half a pixel off ours."
    fan = pytest.importorskip(
        'face_alignment.utils', reason='face-alignment is not installed: its decoder is not compared'
    )
    theirs = torch.from_numpy(fan.get_preds_fromhm(maps[None].numpy())[0])[0] - 0.5
    within = inside(maps, 1)
    assert torch.allclose(theirs[within], quarter(maps)[0][within]) and within.sum() > 30


@pytest.mark.parametrize(
    'name, ours, margin',
    [('refine_keypoints', quarter, 2), ('refine_keypoints_dark', dark, 0), ('refine_keypoints_dark_udp', udp, 0)],
)
def test_mmpose(maps, name, ours, margin):
    refine = getattr(submodule('mmpose', 'codecs.utils.refinement'), name)
    start = argmax(maps)[0].numpy()[None].copy()
    theirs = torch.from_numpy(refine(start, maps.numpy().copy(), *([7] if 'dark' in name else [])))[0]
    within = inside(maps, margin)
    assert (theirs - ours(maps)[0])[within].abs().max() < 2e-4 and within.sum() > 30


def test_landmarker_is_the_paper_away_from_the_border(maps):
    "It answers (y, x), and at a border counts padded zeros as pixels: exp(0) = 1 each."
    theirs = pytest.importorskip(
        'landmarker.heatmap.decoder', reason='landmarker is not installed: its decoder is not compared'
    )
    found = theirs.coord_local_soft_argmax(maps[None], window=5, t=10.0)[0].flip(-1)
    within = inside(maps, 2)
    assert (found - local_softargmax(maps)[0])[within].abs().max() < 1e-4 and within.sum() > 30
    assert torch.equal(decode(maps)[0], local_softargmax(maps)[0])
