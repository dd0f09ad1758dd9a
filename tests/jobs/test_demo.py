"""The viewer without a browser: its points are the predictor's whatever its widgets say, and the page says errors.

`Planted` is a network of known heatmaps: a Gaussian for each landmark at a known place, whatever the crop shows."""

import base64
import io
import json
import re
import subprocess

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from conftest import ROOT, SCRIPTS
from PIL import Image
from scipy.stats import chi2
from torch import nn

from subpixel_nb.codec import decoding
from subpixel_nb.codec.decoding import DECODERS, decode
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import Crop, from_heatmap
from subpixel_nb.data.datasets import Scheme
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.inference import viewer as module
from subpixel_nb.inference.detection import Detector
from subpixel_nb.inference.landmarks import save_landmarks
from subpixel_nb.inference.predictor import BoxedFace, Predictor
from subpixel_nb.inference.viewer import (
    PhotoDrop,
    Viewer,
    ellipse_lines,
    example_photo,
    find_trace,
    jpeg_url,
    open_upload,
    outline,
    parse_box,
    predict_maps,
    render_still,
    show_photo,
    viewer_canvas,
)
from subpixel_nb.training.checkpoints import save_weights
from subpixel_nb.training.recipe import Config, build_network, configure

PLACES = torch.tensor([[6.3, 7.8], [24.6, 9.1], [16.2, 15.4], [15.9, 23.4]])  # heatmap px of 32 x 32
BOX = [40.0, 60.0, 150.0, 160.0]  # 110 px wide: the square is 128 px
SEEN = Crop('seen', 1.0)  # a detector's box taken as it is


class Planted(nn.Module):
    "Counts its calls."

    points, calls = 4, 0

    def forward(self, images):
        self.calls += 1
        return [encode(from_heatmap(PLACES), 32, 1.5).expand(len(images), -1, -1, -1)]


def predictor(detector=None, **options) -> Predictor:
    seen = Detector(lambda pixels: ([], []), SEEN) if detector is None else detector
    return Predictor((Planted(), Config(size=128, depth=3)), detector=seen, scheme=Scheme('four', 4, ()), **options)


def pixels(width: int = 200, height: int = 190) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def file(kind: str = 'PNG', image: Image.Image | None = None, **options) -> bytes:
    (Image.fromarray(pixels()) if image is None else image).save(kept := io.BytesIO(), kind, **options)
    return kept.getvalue()


def moved(viewer: Viewer, **values) -> Viewer:
    for name, value in values.items():
        viewer.controls[name].value = value
    return viewer


def drop(viewer: Viewer, name: str, content: bytes) -> str:
    "What the live line says of a file that the page sends in two parts."
    half = len(content) // 2 + 1
    for at in (0, half):
        viewer.drop._handle_custom_msg(dict(id=name, name=name, size=len(content), at=at), [content[at : at + half]])
    return viewer.readout.summary


def xy(viewer: Viewer, name: str) -> np.ndarray:
    return np.stack([find_trace(viewer.figure, name).x, find_trace(viewer.figure, name).y], -1)


def tiny(folder, seed: int = 0):
    "A checkpoint of random weights, 68 points."
    config, path = (
        configure(dataset='synthetic', width=8, stacks=1, size=64, depth=2, seed=seed),
        folder / f'tiny{seed}.safetensors',
    )
    save_weights(path, build_network(config, 68), config, synthetic_faces(1, size=64))
    return path


# Where the points are


def test_points_are_where_the_heatmaps_say():
    "By hand: a map of 32 px covers the square of 128 px around (95, 110), edge to edge."
    viewer = Viewer(predictor(), pixels(), BOX)
    truth = np.array([95.0, 110.0]) + (PLACES.numpy() - 15.5) * 4
    assert np.abs(xy(viewer, 'points') - truth).max() < 1e-3 and np.abs(viewer.points.numpy() - truth).max() < 1e-3
    moved(viewer, landmark=3)
    assert (
        np.abs(xy(viewer, 'chosen')[0] - truth[3]).max() < 1e-3
        and np.abs(xy(viewer, 'answer')[0] - PLACES[3].numpy()).max() < 1e-3
    )
    assert np.allclose(find_trace(viewer.figure, 'heatmap').z, viewer.face.heatmaps[3])
    assert xy(viewer, 'box')[:5].tolist() == [[40, 60], [150, 60], [150, 160], [40, 160], [40, 60]]


@pytest.mark.parametrize(
    'state',
    [dict(decoder='local', tau=3.0, window=9), dict(decoder='global', tau=20.0), *(dict(decoder=d) for d in DECODERS)],
    ids=str,
)
def test_points_are_the_predictors(state, tmp_path):
    net = tiny(tmp_path)
    photo = synthetic_faces(1, seed=3, size=64).images[0].transpose(1, 2, 0)
    viewer = moved(Viewer(Predictor(net), photo, [20, 25, 80, 85]), landmark=41, **state)
    asked = Predictor(net, **state)(photo, boxes=[20, 25, 80, 85])
    assert np.allclose(xy(viewer, 'points'), asked.points[0], atol=1e-4) and torch.allclose(
        viewer.landmarks.points, asked.points, atol=1e-4
    )
    assert np.allclose(find_trace(viewer.figure, 'points').marker.color, asked.score[0])
    assert torch.allclose(viewer.landmarks.covariance, asked.covariance) and torch.equal(
        viewer.landmarks.boxes, asked.boxes
    )
    heatmap = viewer.face.heatmaps[41][None]
    for name in DECODERS:
        sigma = viewer.predictor.options.sigma
        point = decode(heatmap, name, state.get('tau', 10.0), state.get('window', 5), sigma)[0]
        assert np.allclose(xy(viewer, name), point, atol=1e-4), name


@pytest.mark.parametrize(
    'options', [{}, dict(passes=1), dict(passes=3), dict(crop='hrnet'), dict(inflate=9.0)], ids=str
)
def test_found_and_given_boxes_take_the_passes_of_the_predictor(options, tmp_path):
    net, box = tiny(tmp_path), [20.0, 25.0, 80.0, 85.0]
    photo = synthetic_faces(1, seed=3, size=64).images[0].transpose(1, 2, 0)
    for boxes in (None, box):
        p = Predictor(net, detector=Detector(lambda pixels: ([box], [1.0]), SEEN), **options)
        viewer, asked = Viewer(p, photo, boxes), p(photo, boxes=boxes)
        assert torch.allclose(viewer.landmarks.points, asked.points, atol=1e-6) and torch.allclose(
            viewer.landmarks.boxes, asked.boxes
        )
        assert torch.allclose(viewer.landmarks.covariance, asked.covariance)


def test_sliders_decode_again_and_do_not_run_the_network():
    p = predictor()
    viewer, calls, sources = Viewer(p, pixels(), BOX), p.net.calls, []
    for state in (
        dict(decoder='local'),
        dict(tau=0.5),
        dict(window=15),
        dict(decoder='argmax'),
        dict(landmark=2),
        dict(whole=True),
    ):
        before = xy(viewer, 'points')
        moved(viewer, **state)
        sources.append(find_trace(viewer.figure, 'face').source)
        assert np.array_equal(before, xy(viewer, 'points')) == ('landmark' in state or 'whole' in state), state
    assert p.net.calls == calls == 1 and len({*sources}) == 1, 'the picture stays'


def test_the_local_decoder_goes_to_the_argmax_at_both_ends():
    viewer = moved(Viewer(predictor(tau=1e5), pixels(), BOX), decoder='local')
    assert np.allclose(xy(viewer, 'points'), viewer.face.read('argmax'), atol=1e-3)
    cold = viewer.face.read('local', tau=1e-5)
    assert (
        torch.allclose(cold, viewer.face.read('argmax'), atol=1e-3)
        and (viewer.face.read('local', 10.0) - cold).norm(dim=-1).max() > 0.5
    )


def test_sliders_that_a_decoder_does_not_know_are_off():
    viewer = Viewer(predictor(), pixels(), BOX)
    for name in DECODERS:
        moved(viewer, decoder=name)
        on = [slider for slider in ('tau', 'window') if not viewer.controls[slider].disabled]
        changed = [
            s
            for s, values in dict(tau=(3.0, 30.0), window=(3, 9)).items()
            if not torch.allclose(*(viewer.face.read(name, **{s: v}) for v in values), atol=1e-6)
        ]
        assert on == changed, name
        assert ('window' in on) == (not np.isnan(xy(viewer, 'window')).all())


def test_a_decoder_of_ones_own(monkeypatch):
    monkeypatch.setitem(
        decoding.DECODERS, '<mine>', lambda h, tau, window, sigma: decode(h, 'local', tau, window, sigma)
    )
    viewer = moved(Viewer(predictor(), pixels(), BOX), decoder='<mine>', tau=4.0)
    assert torch.allclose(viewer.points, viewer.face.read('local', 4.0)) and not viewer.controls['tau'].disabled
    assert '<mine>, tau 4, window 5' in viewer.readout.summary


# What is drawn


def test_ellipses_hold_95_percent():
    viewer = Viewer(predictor(), pixels(), BOX)
    face = viewer.face
    lines = ellipse_lines(face)
    around = (lines[:, :-1, None] @ torch.linalg.inv(face.covariance)[:, None] @ lines[:, :-1, :, None]).flatten(1)
    assert torch.allclose(around, torch.full_like(around, chi2.ppf(0.95, 2)), rtol=1e-3) and lines[:, -1].isnan().all()
    assert np.allclose(xy(viewer, 'ellipses').reshape(4, -1, 2), face.points[:, None] + lines, equal_nan=True)
    small = face.covariance[viewer.setting.landmark] / (128 / 32) ** 2
    seen = torch.from_numpy(xy(viewer, 'ellipse'))[:-1] - PLACES[viewer.setting.landmark]
    assert torch.allclose((seen[:, None] @ torch.linalg.inv(small) @ seen[..., None]).flatten(), around[0], rtol=0.02)


def test_no_gaussian_no_ellipse(monkeypatch):
    monkeypatch.setattr(Planted, 'forward', lambda self, images: [torch.ones(len(images), 4, 32, 32)])
    viewer = Viewer(predictor(), pixels(), BOX)
    assert np.isnan(xy(viewer, 'ellipses')).all() and 'no Gaussian to fit' in viewer.readout.summary
    json.dumps([viewer.readout.summary, viewer.figure.layout.to_plotly_json()], allow_nan=False)


@pytest.mark.parametrize('size', [(200, 190), (3000, 2000), (40, 700)])
def test_pictures_lie_where_the_photo_is(size):
    "A white square on black: its middle, found in either picture, is where it is in the photo."
    photo, (x, y) = np.zeros((size[1], size[0], 3), np.uint8), (size[0] // 3, size[1] // 2)
    photo[y - size[1] // 50 : y + size[1] // 50 + 1, x - size[0] // 10 : x + size[0] // 10 + 1] = 255
    wide = size[0] // 5
    viewer = Viewer(predictor(), photo, [x - wide, y - wide, x + wide, y + wide])
    for name in ('whole', 'face'):
        t = find_trace(viewer.figure, name)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(t.source.partition(',')[2]))).convert('L')).astype(
            float
        )
        rows, columns = np.mgrid[: shown.shape[0], : shown.shape[1]]
        found = t.x0 + t.dx * (shown * columns).sum() / shown.sum(), t.y0 + t.dy * (shown * rows).sum() / shown.sum()
        assert abs(found[0] - x) < 0.35 * max(t.dx, 1) and abs(found[1] - y) < 0.35 * max(t.dy, 1), name
    assert viewer.figure.layout.annotations[0].text == f'photo, {size[0]} x {size[1]} px'
    close, whole = viewer.figure.layout.xaxis.range, moved(viewer, whole=True).figure.layout.xaxis.range
    assert (
        whole[1] - whole[0] == max(size)
        and close != whole
        and viewer.figure.layout.yaxis.range[0] > viewer.figure.layout.yaxis.range[1]
    )


def test_small_pictures_only():
    "A photo of 24 million pixels does not go to the page."
    figure = viewer_canvas()
    show_photo(figure, open_upload(predictor(), Image.new('RGB', (6000, 4000), 'white')).photo)
    assert len(find_trace(figure, 'whole').source) < 30_000 and (
        find_trace(figure, 'whole').dx,
        find_trace(figure, 'whole').x0,
    ) == (
        9.375,
        4.1875,
    )
    assert jpeg_url(pixels()).startswith('data:image/jpeg;base64,')


def test_outline():
    assert outline([]).isnan().all() and outline([torch.tensor([1, 2, 3, 4])])[:5].tolist() == [
        [1, 2],
        [3, 2],
        [3, 4],
        [1, 4],
        [1, 2],
    ]
    two = outline([torch.tensor([1, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])])
    assert two.shape == (12, 2) and two[[5, 11]].isnan().all() and not two[6:11].isnan().any()


# What is dropped


def test_a_dropped_photo_is_shown():
    viewer = Viewer(predictor(Detector(lambda pixels: ([[50, 40, 110, 100]], [1.0]), SEEN)), pixels(), BOX)
    said = drop(viewer, '<i>my</i> photo.png', file(image=Image.fromarray(pixels(160, 140))))
    assert (
        viewer.shown.photo.name == '<i>my</i> photo.png'
        and viewer.shown.photo.size == (160, 140)
        and said.startswith('1 face. Landmark 3: ')
    )
    assert (
        '&lt;i&gt;my' in viewer.figure.layout.annotations[0].text
        and viewer.controls['box'].value != '40.0, 60.0, 150.0, 160.0'
    )
    assert viewer.landmarks.photos == {'<i>my</i> photo.png': (160, 140)}


@pytest.mark.parametrize(
    'name, content, said',
    [
        ('letter.jpg', b'Dear', r'letter.jpg: not a readable photo'),
        ('nothing.png', b'', 'nothing.png: not a readable photo'),
        ('half.png', file()[:5000], 'half.png: not a readable photo.*truncated'),
        ('map.png', file(image=Image.new('1', (20_000, 20_000))), r'map.png: not a readable photo \(DecompressionBomb'),
        (
            'deep.tif',
            file('TIFF', Image.fromarray(np.full((9, 9), 1e6, np.float32))),
            'deep.tif: float pixels must be in 0..1',
        ),
    ],
)
def test_what_is_no_photo_is_said_and_the_old_one_stays(name, content, said):
    viewer = Viewer(predictor(), pixels(), BOX)
    before, shown, points = xy(viewer, 'points'), viewer.shown, viewer.points
    drop(viewer, name, content)
    assert re.search(said, viewer.readout.summary)
    assert viewer.shown is shown and viewer.points is points and np.array_equal(before, xy(viewer, 'points'))
    moved(viewer, tau=3.0, decoder='local')
    assert viewer.readout.summary.startswith('Landmark 3:'), 'and goes on'


def test_pictures_of_other_kinds():
    see = Detector(lambda pixels: ([[50, 40, 110, 100]], [1.0]), SEEN)
    viewer, side = Viewer(predictor(see), pixels(), BOX), Image.Exif()
    side[0x0112] = 6
    photo = Image.fromarray(pixels())
    said = drop(viewer, 'side.jpg', file('JPEG', photo, exif=side))
    assert said.startswith('It was turned upright, as its EXIF asks. 1 face. Landmark') and viewer.shown.photo.size == (
        190,
        200,
    )
    for name, content in {
        'press.jpg': file('JPEG', photo.convert('CMYK')),
        'grey.png': file(image=photo.convert('L')),
        'clear.png': file(image=photo.convert('RGBA')),
        'film.gif': file('GIF', photo),
    }.items():
        assert drop(viewer, name, content).startswith('1 face. Landmark') and viewer.shown.photo.size == (200, 190), (
            name
        )
    dark = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 16)
    assert 'really 8 or 12 bits' in drop(viewer, 'deep.png', file(image=dark))


def test_no_face_then_a_drawn_one():
    viewer = Viewer(predictor(), pixels(), BOX)
    assert drop(viewer, 'wall.png', file()) == 'No face was found: draw a box from brows to chin and ear to ear.'
    assert (
        viewer.face is None and viewer.points is None and len(viewer.landmarks) == 0 and viewer.controls['draw'].value
    )
    assert [t.name for t in viewer.figure.data if t.visible] == [
        'whole',
        'other boxes',
    ] and viewer.figure.layout.dragmode == 'drawrect'
    moved(viewer, tau=4.0, decoder='local', landmark=1, whole=True)
    assert viewer.readout.summary.startswith('No face') and render_still(viewer)
    drawn(viewer, 150, 160, 40, 60)
    assert viewer.controls['box'].value == '40.0, 60.0, 150.0, 160.0' and viewer.readout.summary.startswith(
        'Landmark 1:'
    )
    assert (
        all(t.visible for t in viewer.figure.data)
        and viewer.figure.layout.dragmode == 'zoom'
        and not viewer.controls['draw'].value
    )


def test_several_faces_the_surest_first():
    boxes = [[10.0, 10.0, 120.0, 120.0], [100.0, 90.0, 150.0, 140.0], [20.0, 130.0, 60.0, 170.0]]
    p = predictor(Detector(lambda pixels: (boxes, [0.2, 0.9, 0.5]), SEEN))
    viewer = Viewer(p, pixels())
    assert viewer.readout.summary.startswith('3 faces, the surest first.') and p.net.calls == 2, (
        'two passes for one face'
    )
    assert viewer.controls['face'].options == (('1 of 3', 0), ('2 of 3', 1), ('3 of 3', 2))
    centres = []
    for i in (0, 1, 2, 0):
        moved(viewer, face=i)
        centres.append(viewer.points.mean(0).numpy())
        assert len(xy(viewer, 'other boxes')) == 12 and viewer.number == i
    for centre, box in zip(centres, [boxes[1], boxes[2], boxes[0]]):
        assert np.abs(centre - np.reshape(box, (2, 2)).mean(0)).max() < 15
    assert np.array_equal(centres[0], centres[3]) and p.net.calls == 6, 'each face once'


def test_without_a_detector(monkeypatch):
    def missing(name):
        raise ImportError('no dlib')

    p = predictor()
    monkeypatch.setattr(p, 'find', missing)
    viewer = Viewer(p, pixels(200, 100))
    assert (
        viewer.readout.summary.startswith("No detector is installed (pip install 'subpixel_nb[detector]')")
        and p.net.calls == 2
    ), 'a guess takes two passes'
    assert viewer.shown.faces[0].box.tolist() == [74.5, 24.5, 124.5, 74.5] and viewer.face is not None
    moved(viewer, box='10 10 60 60')
    assert viewer.readout.summary.startswith('Landmark') and len(viewer.shown.faces) == 2


def test_files_come_in_parts():
    got, said = [], []
    field = PhotoDrop(lambda name, content: got.append((name, content)), said.append, largest=20)
    field.receive('a', 'first', 6, 0, [b'abc'])
    for at in (0, 3, 6):
        field.receive('b', 'second', 8, at, [memoryview(b'ABCDEFGH')[at : at + 3]])
    field.receive('a', 'first', 6, 3, [b'def']), field.receive('b', 'second', 8, 3, [b'DEF'])
    field.receive('c', 'third', 21, 0)
    field.receive('d', 'empty', 0, 0, [b''])
    field.receive('e', 'fifth', 4, 2, [b'34'])
    assert got == [('second', b'ABCDEFGH'), ('empty', b'')] and said == [
        'third has 2.1e-05 MB, more than 2e-05: take a smaller copy.'
    ]


# What is asked for


def drawn(viewer: Viewer, x0, y0, x1, y1, xref='x'):
    "A box, as plotly tells of one that was drawn in the page."
    if not isinstance(viewer.figure, go.FigureWidget):
        viewer.renew(True)
    shape = dict(
        type='rect', x0=float(x0), y0=float(y0), x1=float(x1), y1=float(y1), xref=xref, yref=xref.replace('x', 'y')
    )
    viewer.figure._js2py_relayout = dict(relayout_data=dict(shapes=[shape]), source_view_id='page')


def test_still_picture_of_no_face_has_no_points():
    "After a photo without a face, the points of the face before it are not in the still picture."
    viewer = Viewer(predictor(), pixels(), BOX)
    drop(viewer, 'wall.png', file(image=Image.new('RGB', (200, 190), 'white')))
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(render_still(viewer)))).convert('HSV')).astype(int)
    assert (image[..., 1] > 100).mean() < 1e-3, 'no coloured dot, no orange box'
    assert viewer.figure.layout.annotations[1].text == 'heatmap'


def test_drawn_boxes():
    viewer = Viewer(predictor(), pixels(), BOX)
    moved(viewer, draw=True)
    assert viewer.figure.layout.dragmode == 'drawrect'
    drawn(viewer, 45, 62, 148, 170)
    assert viewer.controls['box'].value == '45.0, 62.0, 148.0, 170.0' and len(viewer.shown.faces) == 1, (
        'it corrects the face that it overlaps'
    )
    assert not viewer.figure.to_dict()['layout'].get('shapes') and viewer.figure.layout.dragmode == 'zoom'
    drawn(viewer, 30, 50, 2, 10)
    assert (
        viewer.controls['box'].value == '2.0, 10.0, 30.0, 50.0' and len(viewer.shown.faces) == 2 and viewer.number == 1
    )
    drawn(viewer, 3, 4, 9, 8, 'x2')
    assert viewer.readout.summary == 'Draw the box on the photo.' and viewer.number == 1
    drawn(viewer, 50, 50, 50, 90)
    assert 'x1 < x2' in viewer.readout.summary and viewer.number == 1


@pytest.mark.parametrize(
    'text, said',
    [
        ('178, 87', "expected four numbers.*'178, 87'"),
        ('here', "expected four numbers.*'here'"),
        ('', 'expected four'),
        ('1 2 nan 4', 'finite'),
        ('80, 20, 40, 60', 'x1 < x2'),
        ('9000 9000 9100 9100', 'does not fit a photo of 200 x 190 px'),
        ('0 0 9e9 9e9', 'does not fit'),
    ],
)
def test_written_boxes_that_are_none(text, said):
    viewer = Viewer(predictor(), pixels(), BOX)
    moved(viewer, box=text)
    assert re.search(said, viewer.readout.summary)
    assert viewer.controls['box'].value == '40.0, 60.0, 150.0, 160.0' and len(viewer.shown.faces) == 1


def test_written_box():
    viewer = moved(Viewer(predictor(), pixels(), BOX), box='50 60, 90,100')
    assert viewer.controls['box'].value == '50.0, 60.0, 90.0, 100.0' and torch.equal(
        viewer.face.box, torch.tensor([50.0, 60, 90, 100]).double()
    )
    assert parse_box('1e1 2,3 , 4') == [10, 2, 3, 4]


def test_a_landmark_is_clicked():
    viewer = Viewer(predictor(), pixels(), BOX)
    viewer.renew(True)
    at = [t.name for t in viewer.figure.data].index('points')
    click = dict(
        event_type='plotly_click',
        points=dict(trace_indexes=[at], point_indexes=[1], xs=[0.0], ys=[0.0]),
        device_state=None,
        selector=None,
    )
    viewer.figure._js2py_pointsCallback = click
    assert viewer.controls['landmark'].value == 1 and viewer.readout.summary.startswith('Landmark 1:')
    viewer.figure._js2py_pointsCallback = click | dict(
        points=dict(trace_indexes=[0], point_indexes=[2], xs=[0.0], ys=[0.0])
    )
    assert viewer.controls['landmark'].value == 1


def test_unexpected_errors_are_said(monkeypatch):
    viewer = Viewer(predictor(), pixels(), BOX)

    def broken(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(module, 'predict_maps', broken)
    moved(viewer, box='50, 60, 90, 100')
    assert (
        viewer.readout.summary == 'RuntimeError: out of memory'
        and viewer.controls['box'].value == '40.0, 60.0, 150.0, 160.0'
    )
    monkeypatch.undo()
    assert 'Landmark' in moved(viewer, landmark=2).readout.summary


def test_calls_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'):
        Viewer(predictor(), tmp_path / 'nowhere.jpg')
    with pytest.raises(ValueError, match='x1 < x2'):
        Viewer(predictor(), pixels(), [9, 9, 3, 12])
    with pytest.raises(ValueError, match='odd'):
        Viewer(predictor(window=4), pixels(), BOX)
    with pytest.raises(ValueError, match='does not fit'):
        photo = open_upload(predictor(), pixels(), boxes=BOX).photo
        predict_maps(predictor(), BoxedFace(photo, torch.tensor([900.0, 900, 950, 950])))


def test_options_of_the_predictor_are_where_it_begins():
    viewer = Viewer(predictor(decoder='local', tau=60.0, window=21), pixels(), BOX)
    assert [viewer.controls[n].value for n in ('decoder', 'tau', 'window')] == ['local', 60.0, 21]
    assert torch.allclose(viewer.points, viewer.face.points, atol=1e-4)


def test_example(tmp_path):
    photo, box = example_photo()
    assert photo.size[0] > 200 and 0 < box[0] < box[2] < photo.size[0] and 0 < box[1] < box[3] < photo.size[1]
    viewer = Viewer(predictor(), pixels(), BOX)
    viewer.controls['example'].click()
    assert viewer.shown.photo.name == photo.name and viewer.face.box.tolist() == pytest.approx(box)


# In a page and without


def test_figure_widget_comes_with_the_page():
    "No figure widget before a page asks (papermill would store it); then one, made again only if it missed a change."
    viewer = Viewer(predictor(), pixels(), BOX)
    viewer._repr_mimebundle_()
    assert type(viewer.figure) is go.Figure and not any(isinstance(w, go.FigureWidget) for w in viewer.view.children)
    viewer.drop._handle_custom_msg(dict(page=True), [])
    first = viewer.figure
    assert isinstance(first, go.FigureWidget) and viewer.view.children[-1] is first
    viewer.readout._handle_custom_msg('drawn', [])
    assert viewer.figure is first, 'nothing was missed'
    moved(viewer, landmark=1)
    viewer.readout._handle_custom_msg('drawn', [])
    assert (
        viewer.figure is not first
        and viewer.view.children[-1] is viewer.figure
        and np.array_equal(xy(viewer, 'chosen')[0], viewer.points[1])
    )
    drawn(viewer, 45, 62, 148, 170)
    assert viewer.controls['box'].value == '45.0, 62.0, 148.0, 170.0', 'the new figure listens, too'


def test_without_a_screen(tmp_path):
    viewer = moved(Viewer(predictor(), pixels(), BOX), landmark=2)
    bundle = viewer._repr_mimebundle_()
    assert {'application/vnd.jupyter.widget-view+json', 'text/plain', 'image/jpeg'} <= bundle.keys() and bundle[
        'text/plain'
    ] == repr(viewer)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle['image/jpeg']))).convert('RGB')).astype(int)
    assert len(bundle['image/jpeg']) < 150_000 and image.std() > 20
    x, y = viewer.points[2].tolist()
    assert f'Landmark 2: {x:.2f}, {y:.2f} px, score {encode(from_heatmap(PLACES), 32, 1.5)[2].max():.2f}' in repr(
        viewer
    )
    save_landmarks(viewer.landmarks, tmp_path / 'found.json')
    kept = json.loads((tmp_path / 'found.json').read_text())['annotations'][0]['keypoints']
    assert np.allclose(np.reshape(kept, (4, 3))[:, :2], viewer.points, atol=1e-4)


# The job


def papermill(out, **parameters) -> subprocess.CompletedProcess:
    words = [w for name, value in parameters.items() for w in ('-p', name, str(value))]
    return subprocess.run(
        [str(SCRIPTS / 'papermill'), 'nbs/demo.ipynb', str(out), '--no-progress-bar', *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_job(tmp_path):
    face = synthetic_faces(1, seed=3, size=64)
    Image.fromarray(face.images[0].transpose(1, 2, 0)).save(tmp_path / 'my.png')
    done = papermill(
        tmp_path / 'out.ipynb',
        checkpoint=tiny(tmp_path),
        photo=tmp_path / 'my.png',
        box='20, 25, 80, 85',
        decoder='local',
        tau=3.0,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / 'out.ipynb').read_text()
    shown = [
        o['data']
        for cell in json.loads(text)['cells']
        for o in cell.get('outputs', ())
        if 'image/jpeg' in o.get('data', {})
    ]
    asked = Predictor(tmp_path / 'tiny0.safetensors', decoder='local', tau=3.0)(
        tmp_path / 'my.png', boxes=[20, 25, 80, 85]
    ).points[0, 30]
    assert (
        len(shown) == 1
        and f'Landmark 30: {asked[0]:.2f}, {asked[1]:.2f} px' in ''.join(shown[0]['text/plain'])
        and len(text) < 600_000
    )


@pytest.mark.slow
@pytest.mark.parametrize('parameters, said', [(dict(box='3 4'), 'expected four numbers')], ids=str)
def test_job_with_wrong_parameters(parameters, said, tmp_path):
    done = papermill(tmp_path / 'out.ipynb', **dict(checkpoint=tiny(tmp_path)) | parameters)
    assert done.returncode == 1 and re.search(said, done.stderr), done.stderr[-2000:]
