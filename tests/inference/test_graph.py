"The decoder inside the graph: compared with lesson 1.3, ONNX Runtime with PyTorch, and what the file is made of."

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from subpixel_nb.codec.decoding import gaussian_fit
from subpixel_nb.codec.encoding import encode
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import find_dataset
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.inference import graph as module
from subpixel_nb.inference.graph import (
    OPERATORS,
    LandmarkGraph,
    describe_graph,
    export_from_shell,
    export_program,
    onnx_model,
    save_graph,
)
from subpixel_nb.inference.predictor import Predictor, load_network
from subpixel_nb.model.hourglass import StackedHourglass
from subpixel_nb.training.checkpoints import save_weights
from subpixel_nb.training.loop import predict
from subpixel_nb.training.recipe import build_network, configure

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=1)


class Spotted(nn.Module):
    "Heatmaps that are the crop's three colours, averaged per heatmap px, and a real network's small answers on top."

    def __init__(self, stride: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.points, self.depth, self.stride = 3, 1, stride
        self.hourglass = StackedHourglass(points=3, stacks=2, width=8, depth=1, stride=stride)
        nn.init.normal_(self.hourglass.heads[-1].weight, std=0.002)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(x, self.stride) + self.hourglass(x)[-1]]


def spots(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    "Crops (count, 3, 64, 64) uint8, a Gaussian spot in each colour, and their centres (count, 3, 2) px."
    at = 64 * torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (255 * encode(at, size=64, sigma=7.0, stride=1)).round().to(torch.uint8), at


# The whole


def test_the_network_that_ships_as_a_graph():
    "Points, scores and covariances, these learnt for the checkpoint, as the predictor reads them."
    reader, (net, config, _, learnt) = Predictor('synthetic').reader, load_network('synthetic')
    crops = torch.from_numpy(synthetic_faces(3, seed=3, size=128, margin=0).images)
    with torch.no_grad():
        points, score, covariance = LandmarkGraph(net, config.size, covariances=learnt)(crops)
    expected = reader.read(reader.heatmaps(crops))
    assert (points - expected[0]).abs().max() < 1e-3 and (score - expected[1]).abs().max() < 1e-5 and learnt is not None
    known = expected[2].isfinite()
    assert known.double().mean() > 0.9 and (covariance[known] / expected[2][known]).median().item() == pytest.approx(
        1, abs=0.01
    )
    assert describe_graph(LandmarkGraph(net, config.size, covariances=learnt), config)['calibrated'] == 'yes'


# The module


@pytest.fixture(scope='module')
def graph() -> LandmarkGraph:
    return LandmarkGraph(Spotted(), 64)


def test_points_are_where_the_spots_are(graph):
    "In the crop's own px, pixel centres on integers; away from the border, where a blurred spot is cut."
    crops, at = spots(60)
    with torch.no_grad():
        points, score, covariance = graph(crops)
    inside = ((at > 12) & (at < 51)).all(-1)
    assert (points - at)[inside].abs().max() < 0.15 and inside.sum() > 40 and score.min() > 0.5
    assert points.shape == (60, 3, 2) and score.shape == (60, 3) and covariance.shape == (60, 3, 2, 2)


@pytest.mark.parametrize('stride', [8, 16])
def test_points_and_covariances_of_other_strides(stride):
    "They are in px of the crop."
    at = 128 * torch.rand(40, 3, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    crops = (255 * encode(at, size=128, sigma=1.5 * stride, stride=1)).round().to(torch.uint8)
    graph = LandmarkGraph(Spotted(stride), 128)
    with torch.no_grad():
        (points, _, covariance), fit = graph(crops), gaussian_fit(graph.net(crops / 255)[-1])
    inside = ((at > 2 * stride) & (at < 127 - 2 * stride)).all(-1)
    assert inside.sum() > 20 and (points - at)[inside].abs().max() < 0.1 * stride
    assert torch.allclose(covariance[inside], stride**2 * fit.covariance[inside], rtol=0.05, atol=1e-2)


def test_covariance_is_in_px_of_the_crop(graph):
    "The fit's own, times the square of the stride, 4 crop px to one of the heatmap."
    crops, _ = spots(4)
    with torch.no_grad():
        covariance, fit = graph(crops)[2], gaussian_fit(graph.net(crops / 255)[-1])
    fitted = fit.covariance.isfinite()
    assert torch.equal(fitted, covariance.isfinite()) and fitted.float().mean() > 0.8
    assert torch.allclose(covariance[fitted], 16 * fit.covariance[fitted], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize('decoder', ['gaussian', 'local'])
def test_as_predict_answers(decoder):
    "The workbook's own evaluation of a network on drawn faces, crop margin aside."
    faces, net = load_faces('synthetic', 'test', size=64, limit=6), build_network(configure(**SMALL), 68)
    nn.init.normal_(net.heads[0].weight, std=0.5)
    found, scores = predict(net, faces, decoders=(decoder,))
    inner = slice(faces.margin, faces.margin + 64)
    crops = torch.from_numpy(np.array(faces.images[:6]))[..., inner, inner]
    with torch.no_grad():
        points, score, _ = LandmarkGraph(net, 64, decoder)(crops)
    assert (points + faces.margin - found[decoder]).abs().max() < 2e-2 and (score - scores).abs().max() < 1e-5


def test_floats_and_bytes_agree(graph):
    crops, _ = spots(4)
    with torch.no_grad():
        pairs = zip(graph(crops), LandmarkGraph(graph.net, 64, dtype='float32')(crops / 255))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_refused(graph):
    crops, _ = spots(2)
    for wrong in (crops[:, :, :32], crops[:, :1], crops[0]):
        with pytest.raises(ValueError, match=r'expected crops \(B, 3, 64, 64\), got'):
            graph(wrong)
    with pytest.raises(TypeError, match='expected uint8, got torch.float32'):
        graph(crops.float())
    net = graph.net
    with pytest.raises(ValueError, match="unknown decoder for a graph 'dark'; known: "):
        LandmarkGraph(net, 64, 'dark')
    with pytest.raises(ValueError, match="unknown dtype of crops 'float16'"):
        LandmarkGraph(net, 64, dtype='float16')
    with pytest.raises(ValueError, match='size: expected a multiple of .* = 8 px, got 100'):
        LandmarkGraph(net, 100)
    with pytest.raises(ValueError, match='tau: expected a positive number, got nan'):
        LandmarkGraph(net, 64, tau=float('nan'))
    with pytest.raises(ValueError, match='fit_window: expected an odd number, got 6'):
        LandmarkGraph(net, 64, fit_window=6)
    corrected = build_network(configure(**SMALL, method='static'), 68)
    with pytest.raises(ValueError, match='corrects an argmax by offsets'):
        LandmarkGraph(corrected, 64)


def test_what_is_not_finite_shows(graph):
    "A NaN in one crop: its scores are not finite, its covariances infinite; the crop beside it is not touched."
    crops, _ = spots(2)
    images = crops / 255
    images[0, :, 5, 5] = torch.nan
    with torch.no_grad():
        points, score, covariance = LandmarkGraph(graph.net, 64, dtype='float32')(images)
    assert not score[0].isfinite().any() and covariance[0].diagonal(dim1=-2, dim2=-1).isinf().all()
    with torch.no_grad():
        assert torch.equal(points[1], graph(crops)[0][1])


# Exported


@pytest.fixture(scope='module')
def program(graph):
    return export_program(graph)


@pytest.mark.parametrize('batch', [1, 3])
def test_torch_export(graph, program, batch):
    crops, _ = spots(batch, batch)
    with torch.no_grad():
        assert all((a - b).abs().max() < 1e-4 for a, b in zip(program.module()(crops), graph(crops)))


@pytest.fixture(scope='module')
def model(graph, program):
    "The graph as ONNX, made once because that takes seconds."
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    return onnx_model(program, describe_graph(graph, configure(**SMALL)))


@pytest.fixture(scope='module')
def session(model):
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


@pytest.mark.parametrize('batch', [1, 2, 5, 16])
@pytest.mark.slow
def test_onnx_runtime_answers_what_pytorch_does(graph, session, batch):
    crops, _ = spots(batch, batch)
    there = [torch.from_numpy(v) for v in session.run(['points', 'score', 'covariance'], {'images': crops.numpy()})]
    with torch.no_grad():
        here = graph(crops)
    assert [v.shape for v in there] == [v.shape for v in here]
    assert (there[0] - here[0]).abs().max() < 1e-3 and (there[1] - here[1]).abs().max() < 1e-5
    fitted = here[2].isfinite()
    assert torch.equal(fitted, there[2].isfinite()) and (there[2] - here[2])[fitted].abs().max() < 1e-3


@pytest.mark.slow
def test_operators_are_the_promised_ones(model):
    "None makes shapes from data, loops or scatters, and all gathers are by constants."
    used = {node.op_type for node in model.graph.node}
    assert used <= OPERATORS and {'Conv', 'MatMul', 'ArgMax', 'Exp'} <= used
    assert not OPERATORS & {
        'NonZero',
        'ScatterND',
        'ScatterElements',
        'Loop',
        'If',
        'Scan',
        'GatherElements',
        'GatherND',
        'TopK',
        'Shape',
        'Range',
        'Expand',
        'IsNaN',
        'IsInf',
        'Einsum',
        'NonMaxSuppression',
        'Unique',
        'Compress',
    }
    constants = {t.name for t in model.graph.initializer}
    assert all(n.input[1] in constants for n in model.graph.node if n.op_type == 'Gather')
    assert all(n.input[1] in constants for n in model.graph.node if n.op_type.startswith('Reduce') and len(n.input) > 1)
    assert all(n.input[1] in constants for n in model.graph.node if n.op_type == 'Reshape')
    assert {n.domain for n in model.graph.node} == {''} and not model.functions
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 18)]


@pytest.mark.slow
def test_the_promised_operators_are_known(model):
    "The list names operators of ONNX's own set, spelt as there."
    import onnx

    assert all(onnx.defs.has(name) for name in OPERATORS)


@pytest.mark.slow
def test_shapes_and_names(model):
    shapes = {}
    for v in (*model.graph.input, *model.graph.output):
        shapes[v.name] = [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    assert shapes == {
        'images': ['batch', 3, 64, 64],
        'points': ['batch', 3, 2],
        'score': ['batch', 3],
        'covariance': ['batch', 3, 2, 2],
    }
    assert model.graph.input[0].type.tensor_type.elem_type == 2  # uint8


@pytest.mark.slow
def test_metadata(session):
    told = session.get_modelmeta().custom_metadata_map
    assert (
        told['landmarks'] == '3' and told['size'] == '64' and told['dtype'] == 'uint8' and told['decoder'] == 'gaussian'
    )
    assert told['tau'] == '10.0' and told['window'] == '5' and told['fit_window'] == '13' and told['sigma'] == '1.5'
    assert (
        told['normalisation'] == 'divided by 255 inside'
        and 'pixel i covers i - 1/2' in told['pixels']
        and told['crop'] == 'paper'
    )
    assert (
        told['version'] == module.subpixel_nb.__version__
        and 'square of side 1.16364 x the longer side' in told['crop_rule']
    )


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_the_file(model):
    content = model.SerializeToString()
    assert str(ROOT).encode() not in content and b'site-packages' not in content and b'.py' not in content


@pytest.mark.slow
def test_wrong_input_at_the_runtime(session):
    crops, _ = spots(1)
    with pytest.raises(Exception, match='invalid dimensions'):
        session.run(None, {'images': crops[..., :32].numpy()})
    with pytest.raises(Exception, match='Unexpected input data type'):
        session.run(None, {'images': crops.float().numpy()})


def test_without_the_extra(monkeypatch, program):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r"onnx is not installed: pip install 'subpixel_nb\[onnx\]'"):
        onnx_model(program, {})


def test_old_opsets(program):
    pytest.importorskip('onnxscript'), pytest.importorskip('onnx')
    with pytest.raises(ValueError, match='opset: expected 18 or more, got 17'):
        onnx_model(program, {}, 17)


@pytest.mark.slow
@pytest.mark.parametrize('opset', [30, 99])
def test_an_opset_that_does_not_exist_yet(program, opset):
    "PyTorch's exporter writes another one without a word."
    pytest.importorskip('onnxscript'), pytest.importorskip('onnx')
    with pytest.raises(ValueError, match=f'opset: asked for {opset}, and the exporter could only write 18'):
        onnx_model(program, {}, opset)


@pytest.mark.slow
def test_a_later_opset_is_written(program):
    pytest.importorskip('onnxscript'), pytest.importorskip('onnx')
    assert [o.version for o in onnx_model(program, {}, 20).opset_import if not o.domain] == [20]


# Files


def test_where_it_cannot_be_written(graph, tmp_path, monkeypatch):
    "Said before the work is done."
    monkeypatch.setattr(module, 'export_program', lambda graph: pytest.fail('it began to work'))
    with pytest.raises(ValueError, match='ending in .onnx or .pt2'):
        save_graph(graph, tmp_path / 'a.pb')
    with pytest.raises(FileNotFoundError, match='no such folder'):
        save_graph(graph, tmp_path / 'no' / 'a.onnx')
    (tmp_path / 'b.onnx').mkdir()
    with pytest.raises(PermissionError, match='cannot be written there'):
        save_graph(graph, tmp_path / 'b.onnx')
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(PermissionError, match='a.onnx: cannot be written there'):
        save_graph(graph, tmp_path / 'a.onnx')


def test_a_file_is_replaced_whole_or_not_at_all(graph, program, tmp_path, monkeypatch):
    path = tmp_path / 'a.onnx'
    path.write_text('old')
    monkeypatch.setattr(module, 'export_program', lambda graph: program)
    monkeypatch.setattr(module, 'onnx_model', lambda *_: (_ for _ in ()).throw(RuntimeError('planted')))
    with pytest.raises(RuntimeError, match='planted'):
        save_graph(graph, path)
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.onnx']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A checkpoint of 68 landmarks, and its network."
    folder, config = tmp_path_factory.mktemp('run'), configure(**SMALL, tau=8.0, window=7)
    net = build_network(config, 68)
    nn.init.normal_(net.heads[0].weight, std=0.5)
    save_weights(folder / 'weights.safetensors', net, config, find_dataset('synthetic'))
    return folder, net.eval()


@pytest.mark.slow
def test_command_for_torch_export(run, tmp_path):
    "In a process of its own; what it wrote runs without our code."
    folder, net = run
    done = subprocess.run(
        [sys.executable, '-m', 'subpixel_nb.graph', folder, tmp_path / 'a.pt2', '--decoder', 'local'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith('a.pt2: ') and done.stderr == '', done.stderr
    told = {'subpixel_nb.json': ''}
    loaded, (crops, _) = torch.export.load(tmp_path / 'a.pt2', extra_files=told).module(), spots(3)
    with torch.no_grad():
        assert (loaded(crops)[0] - LandmarkGraph(net, 64, 'local', 8.0, 7)(crops)[0]).abs().max() < 1e-4
    told = json.loads(told['subpixel_nb.json'])
    assert (told['landmarks'], told['tau'], told['window'], told['decoder'], told['dataset']) == (
        '68',
        '8.0',
        '7',
        'local',
        'synthetic',
    )


@pytest.mark.slow
def test_command_for_onnx(run, tmp_path, capsys):
    "68 landmarks, the soft-argmax, floats in; a crop that is not finite shows in the score there too."
    for name in ('onnx', 'onnxscript'):
        pytest.importorskip(name)
    onnxruntime, (folder, net) = pytest.importorskip('onnxruntime'), run
    export_from_shell([str(folder), str(tmp_path / 'a.onnx'), '--decoder', 'local', '--dtype', 'float32'])
    assert capsys.readouterr().out.strip().endswith('68 landmarks, 64 px, float32, local')
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx', providers=['CPUExecutionProvider'])
    images = spots(3)[0] / 255
    with torch.no_grad():
        here = LandmarkGraph(net, 64, 'local', 8.0, 7, dtype='float32')(images)
    there = session.run(None, {'images': images.numpy()})
    assert np.abs(there[0] - here[0].numpy()).max() < 1e-3 and np.abs(there[1] - here[1].numpy()).max() < 1e-4
    images[1, 0, 9, 9] = torch.nan
    score = session.run(['score'], {'images': images.numpy()})[0]
    assert not np.isfinite(score[1]).any() and np.allclose(score[[0, 2]], there[1][[0, 2]])


def test_the_command_says_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match='no weights there'):
        export_from_shell([str(tmp_path), str(tmp_path / 'a.onnx')])
