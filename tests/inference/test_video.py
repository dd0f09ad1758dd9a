"Videos written by the tests: uneven times, damage, none; spots that are followed, lost and found again."

import csv
import math
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from test_predictor import BOX, SPOTS, Colours, colours, spots

from subpixel_nb.codec.geometry import landmark_box
from subpixel_nb.data.datasets import DataError, Scheme
from subpixel_nb.inference.detection import Detections
from subpixel_nb.inference.photos import Photo, read_photo, turn_about
from subpixel_nb.inference.predictor import Predictor
from subpixel_nb.inference.video import (
    Tracker,
    draw_points,
    next_frame_boxes,
    overlap,
    promised_frames,
    read_video,
    track_video,
    write_video,
)
from subpixel_nb.training.recipe import Config

av = pytest.importorskip('av')


def pages(count: int, size=(64, 48)) -> list[np.ndarray]:
    "Pictures of eight stripes, dark or light: their number in binary."
    stripes = np.arange(size[0]) * 8 // size[0]
    return [
        np.broadcast_to((60 + 130 * (i >> stripes & 1))[None, :, None], (size[1], size[0], 3)).astype(np.uint8)
        for i in range(count)
    ]


def numbers(frames) -> list[int]:
    return [sum(int(frame.pixels[:, 8 * b + 2 : 8 * b + 6].mean() > 125) << b for b in range(8)) for frame in frames]


def said(path) -> tuple[list, list[str]]:
    "A video's frames, and its warnings."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        return list(read_video(path)), [str(w.message) for w in caught]


# Frames in and out


@pytest.mark.parametrize('suffix', ['.mp4', '.mov', '.mkv'])
def test_uneven_times_come_back(tmp_path, suffix):
    times = [0, 1001 / 30000, 0.05, 0.2, 0.5, 0.51, 1.0, 7.5]
    write_video(tmp_path / f'a{suffix}', zip(times, pages(8)))
    frames, warned = said(tmp_path / f'a{suffix}')
    assert [frame.index for frame in frames] == list(range(8)) and numbers(frames) == list(range(8)) and not warned
    assert [frame.time for frame in frames] == pytest.approx(
        times, abs=6e-4 if suffix == '.mkv' else 1e-5
    )  # Matroska counts milliseconds
    assert frames[0].pixels.dtype == np.uint8 and frames[0].pixels.shape == (48, 64, 3)
    assert [p.name for p in tmp_path.iterdir()] == [f'a{suffix}']


def test_odd_sides_grow_by_a_pixel_and_equal_times_move_on(tmp_path):
    page = np.full((31, 45, 3), 100, np.uint8)
    page[:, 30:] = 200
    write_video(tmp_path / 'a.mp4', [(0, page), (0, page), (0.1, page)])
    frames, _ = said(tmp_path / 'a.mp4')
    assert frames[0].pixels.shape == (32, 46, 3) and np.abs(frames[0].pixels[:31, :45].astype(int) - page).mean() < 3
    assert 0 < frames[1].time < 0.001 and frames[2].time == pytest.approx(0.1, abs=1e-4)


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    write_video(tmp_path / 'a.mp4', [(0, pages(1)[0])])
    before = (tmp_path / 'a.mp4').read_bytes()

    def broken():
        yield 0, pages(1)[0]
        raise RuntimeError('the camera fell')

    with pytest.raises(RuntimeError, match='the camera fell'):
        write_video(tmp_path / 'a.mp4', broken())
    with pytest.raises(ValueError, match='without frames'):
        write_video(tmp_path / 'a.mp4', [])
    with pytest.raises(ValueError, match='a frame of 32 x 48 px in a video of 64 x 48'):
        write_video(tmp_path / 'a.mp4', [(0, pages(1)[0]), (1, pages(1, (32, 48))[0])])
    with pytest.raises(ValueError, match="unknown kind of video '.avi'; known: .m"):
        write_video(tmp_path / 'a.avi', [])
    assert (tmp_path / 'a.mp4').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.mp4']


def film(path, page, matrix=None):
    "A film of one frame, with the first two rows (a, b), (c, d) of a display matrix."
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('mpeg4', rate=25)
        (stream.height, stream.width), stream.pix_fmt = page.shape[:2], 'yuv420p'
        if matrix is not None:
            (a, b), (c, d) = (np.asarray(matrix) * 65536).astype(int).tolist()
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        out.mux(stream.encode(av.VideoFrame.from_ndarray(page)))
        out.mux(stream.encode())
    return path


def corners() -> np.ndarray:
    "A page (48, 64, 3) whose four quarters differ."
    page = np.zeros((48, 64, 3), np.uint8)
    page[:24, :32], page[:24, 32:], page[24:, :32], page[24:, 32:] = 230, 160, 90, 20
    return page


@pytest.mark.parametrize('scale', [1, 0.5])
@pytest.mark.parametrize('signs', [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize('swapped', [False, True])
def test_all_eight_orientations_of_a_display_matrix_are_shown_upright(tmp_path, swapped, signs, scale):
    "The pixel at (x, y) is shown at (a x + c y, b x + d y), so that a front camera's mirror is no turn."
    page, matrix = corners(), scale * np.diag(signs)
    matrix = matrix[::-1] if swapped else matrix
    expected = np.zeros((64, 48, 3) if swapped else (48, 64, 3))
    y, x = np.mgrid[:48, :64]
    moved = np.stack([x, y], -1) @ np.sign(matrix).astype(int)
    moved -= moved.min((0, 1))
    expected[moved[..., 1], moved[..., 0]] = page
    frames, warned = said(film(tmp_path / 'a.mp4', page, matrix))
    assert frames[0].pixels.shape == expected.shape and not warned
    assert np.abs(frames[0].pixels - expected).mean() < 6


@pytest.mark.parametrize('turn', [90, 180, -90])
def test_a_turn_as_pyav_writes_it(tmp_path, turn):
    "`set_display_rotation` counts counter-clockwise, as `np.rot90` does."
    with av.open(str(tmp_path / 'a.mp4'), 'w') as out:
        stream = out.add_stream('mpeg4', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        stream.set_display_rotation(turn)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(corners())))
        out.mux(stream.encode())
    (frame,) = read_video(tmp_path / 'a.mp4')
    assert np.abs(frame.pixels.astype(int) - np.rot90(corners(), turn // 90)).mean() < 6


def test_a_slanted_display_matrix_is_named(tmp_path):
    "A turn by 30 degrees is not applied, and not passed over in silence."
    cosine, sine = 3**0.5 / 2, 0.5
    frames, warned = said(film(tmp_path / 'a.mp4', corners(), [[cosine, sine], [-sine, cosine]]))
    assert np.abs(frames[0].pixels.astype(int) - corners()).mean() < 6
    assert len(warned) == 1 and 'a.mp4: its display matrix is no turn by a multiple of 90°' in warned[0]


# Damage


@pytest.fixture
def long(tmp_path):
    "The bytes of a video of 60 frames with a key frame at every tenth."
    rng, path = np.random.default_rng(0), tmp_path / 'long.mkv'
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264', rate=25, options=dict(crf='10', g='10', bf='0'))
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for page in pages(60):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.clip(page + rng.normal(0, 9, page.shape), 0, 255).astype(np.uint8))
                )
            )
        out.mux(stream.encode())
    assert numbers(said(path)[0]) == list(range(60))
    return path.read_bytes()


def test_a_cut_tail_keeps_what_was_there(tmp_path, long):
    for share in (0.9, 0.6, 0.3):
        (tmp_path / 'cut.mkv').write_bytes(long[: int(share * len(long))])
        frames, warned = said(tmp_path / 'cut.mkv')
        assert 60 * (share - 0.15) < len(frames) < 60 * (share + 0.1) and numbers(frames) == list(range(len(frames)))
        told = [
            w
            for w in warned
            if f'damaged after {len(frames)} frames' in w
            or f'cut off after {len(frames)} frames, at {frames[-1].time:.2f} s of the 2.4' in w
        ]
        assert told == warned and (told or share > 0.5)


def test_a_hole_is_told_and_what_follows_keeps_its_times(tmp_path, long):
    hole = bytearray(long)
    hole[len(hole) // 2 : len(hole) // 2 + 3000] = np.random.default_rng(1).bytes(3000)
    (tmp_path / 'hole.mkv').write_bytes(hole)
    frames, warned = said(tmp_path / 'hole.mkv')
    first = int(warned[0].split('damaged after ')[1].split()[0])
    assert len(warned) == 1 and 20 <= first <= 40 and f'{len(frames)} could be read' in warned[0]
    assert numbers(frames[:first]) == list(range(first)) and numbers(frames[-8:]) == list(range(52, 60))
    assert [frame.time for frame in frames[-8:]] == pytest.approx(np.arange(52, 60) / 25, abs=1e-3)


def test_files_that_are_no_video(tmp_path, long):
    (tmp_path / 'text.mp4').write_text('no video')
    (tmp_path / 'empty.mp4').write_bytes(b'')
    Image.new('RGB', (8, 8)).save(tmp_path / 'photo.mp4', 'png')
    for name in ('text.mp4', 'empty.mp4'):
        with pytest.raises(DataError, match=f'{name}: not a readable video'):
            list(read_video(tmp_path / name))
    with pytest.raises(FileNotFoundError, match='none.mp4: no such video'):
        list(read_video(tmp_path / 'none.mp4'))
    with av.open(str(tmp_path / 'sound.wav'), 'w') as out:
        stream = out.add_stream('pcm_s16le', rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    with pytest.raises(DataError, match='sound.wav: there is no video in it'):
        list(read_video(tmp_path / 'sound.wav'))
    start = long.find(b'\x1f\x43\xb6\x75')  # Matroska's first cluster: before it lie only headers
    assert start > 0
    (tmp_path / 'headers.mkv').write_bytes(long[:start])
    with pytest.raises(DataError, match='headers.mkv: not (one readable frame|a readable video)'):
        list(read_video(tmp_path / 'headers.mkv'))
    with av.open(str(tmp_path / 'dark.mkv'), 'w') as out:  # packets, but nothing that is a frame
        stream = out.add_stream('mpeg4', rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, 'yuv420p', Fraction(1, 25)
        out.start_encoding()
        for i in range(3):
            packet = av.Packet(bytes(64))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 25)
            out.mux(packet)
    with pytest.raises(DataError, match='dark.mkv: not one readable frame'):
        list(read_video(tmp_path / 'dark.mkv'))


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r"pip install 'subpixel_nb\[video\]'"):
        list(read_video(tmp_path / 'a.mp4'))


# Points on frames


def test_discs_by_hand():
    black = np.zeros((20, 30, 3), np.uint8)
    drawn = draw_points(black, torch.tensor([[10.0, 8.0]]), 1.0, (250, 100, 0))
    assert (
        (black == 0).all()
        and drawn[8, 10].tolist() == [250, 100, 0]
        and drawn[8, 11].tolist() == [125, 50, 0]
        and drawn[8, 12].max() == 0
    )
    assert draw_points(black, [[9.5, 8]], 0.5, (200,) * 3)[8, 8:12, 0].tolist() == [0, 100, 100, 0]
    for edge in ([-0.5, 3], [29.4, 19.4], [-50, -50], [1e9, 5], [np.nan, 3]):
        draw_points(black, [edge], 2.0)
    assert draw_points(black, [[29.4, 19.4]], 2.0)[19, 29].max() > 0 and draw_points(black, [[-50, 3]]).max() == 0


# Following


def frame(points, index: int = 0) -> Photo:
    return read_photo(np.clip(spots(points), 0, 1), f'{index:06d}')


def test_a_moving_face_is_followed():
    "3 px a frame, 40 frames: the first box would not hold the face any more."
    tracker = Tracker(colours(), BOX)
    for i in range(40):
        there = SPOTS - torch.tensor([60.0, 40.0]) + 3.0 * i * torch.tensor([1.0, 0.5], dtype=torch.float64) * (i > 0)
        if i == 0:
            tracker = Tracker(colours(), landmark_box(there))
        found = tracker(frame(there, i))
        assert (
            found.tracks.tolist() == [0]
            and found.names == [f'{i:06d}']
            and (found.points[0] - there).abs().max() < 0.06
        )


def test_the_next_box_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 100.0, 80.0]] * 3)
    points = torch.tensor(
        [[[4.0, 0.0], [100.0, 80.0]], [[4.0, 4.0], [100.0, 84.0]], [[40.0, 40.0], [60.0, 50.0]]]
    )  # middle off by 2 and 4.5 px; too small
    assert next_frame_boxes(boxes, points).tolist() == [[2, 0, 100, 80], [4, 4, 100, 84], [0, 0, 100, 80]]
    assert next_frame_boxes(boxes, points, 0.25)[0].tolist() == [1, 0, 100, 80] and next_frame_boxes(
        boxes, points, 1.0
    )[0].tolist() == [
        4,
        0,
        100,
        80,
    ]


def test_boxes_follow_the_landmarks():
    for off, pull, share in ((4, 0.5, 1), (1, 0.5, 0.5), (1, 0.25, 0.25)):
        tracker = Tracker(colours(), BOX + off, pull=pull)
        first = tracker(frame(SPOTS))
        assert torch.equal(first.boxes, BOX + off)
        assert (
            tracker(frame(SPOTS)).boxes - (1 - share) * (BOX + off) - share * landmark_box(first.points)
        ).abs().max() < 1e-6


def test_a_box_that_answers_its_own_width_does_not_swing():
    "A network whose outer points lie the nearer, the wider the crop: a whole step swings for ever, half comes to rest."

    class Contrary(torch.nn.Module):
        points = 3

        def forward(self, images):
            width = torch.stack(
                [(image[0].amax(0) > 0.05).sum() for image in images]
            )  # of the red spot in the crop: small where the crop is wide
            y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij')
            reach = 4 + 0.35 * width[:, None, None, None]
            at = torch.stack([15.5 - reach, 15.5 + 0 * reach, 15.5 + reach], 1)[..., 0]
            return [torch.exp(-0.5 * ((x - at) ** 2 + (y - 15.5) ** 2) / 1.5**2)]

    from subpixel_nb.inference.predictor import Predictor
    from subpixel_nb.training.recipe import Config

    page, swings = read_photo(spots(torch.tensor([[100.0, 90.0]] * 3), sigma=5.0)), {}
    for pull in (1.0, 0.5):
        tracker = Tracker(Predictor((Contrary(), Config(size=128, depth=3))), [60.0, 50.0, 140.0, 130.0], pull=pull)
        sides = torch.cat([tracker(page).boxes for _ in range(40)])
        swings[pull] = ((sides[20:, 2] - sides[20:, 0]).diff().abs()).mean().item()
    assert swings[1.0] > 0.5 and swings[0.5] < 0.3 * swings[1.0]


def hints(table: dict, asked: list):
    "A detector that knows the boxes of some frames."

    def detect(photo):
        asked.append(int(photo.name))
        return torch.stack(table[int(photo.name)]) if table.get(int(photo.name)) else torch.zeros(
            0, 4, dtype=torch.float64
        ), None

    return detect


def test_lost_and_found_again():
    asked, table = [], {0: [BOX[0]], 6: [BOX[0] + 9], 7: [BOX[0]]}
    tracker = Tracker(colours(detector=hints(table, asked)), every=0)
    dark = torch.full((3, 2), -99.0, dtype=torch.float64)
    found = [tracker(frame(SPOTS if i < 4 or i > 5 else dark, i)) for i in range(10)]
    assert [f.tracks.tolist() for f in found] == [[0]] * 4 + [[], []] + [[1]] * 4
    assert asked == [0, 4, 5, 6]  # at the start, when it is lost, and until there is one again
    assert found[4].photos == {'000004': (200, 180)} and (found[9].points[0] - SPOTS).abs().max() < 0.06


def test_newcomers_are_looked_for_and_nobody_is_followed_twice():
    asked = []
    other = torch.tensor([BOX[0].tolist()], dtype=torch.float64)[0]
    wide = torch.cat([SPOTS, SPOTS + torch.tensor([130.0, 40.0], dtype=torch.float64)])

    def page(i: int) -> Photo:
        both = spots(SPOTS, (330, 240)) + (spots(wide[3:], (330, 240)) if i >= 3 else 0)
        return read_photo(np.clip(both, 0, 1), f'{i:06d}')

    table = {i: [other + 3] + ([other + torch.tensor([130.0, 40.0, 130.0, 40.0])] if i >= 3 else []) for i in range(9)}
    tracker = Tracker(colours(detector=hints(table, asked)), every=4)
    found = [tracker(page(i)) for i in range(9)]
    assert asked == [0, 4, 8] and [f.tracks.tolist() for f in found] == [[0]] * 4 + [[0, 1]] * 5
    assert (found[8].points.flatten(0, 1) - wide).abs().max() < 0.06


def test_boxes_for_later_frames_and_bad_ones():
    tracker = Tracker(colours(), {1: BOX, 3: BOX + 2})
    assert [tracker(frame(SPOTS, i)).tracks.tolist() for i in range(5)] == [
        [],
        [0],
        [0],
        [0],
        [0],
    ]  # 3: it is followed already
    with pytest.raises(ValueError, match='frame 2: boxes are x1 y1 x2 y2'):
        Tracker(colours(), {2: [5, 5, 1, 9]})
    for options in (dict(lost=1), dict(lost=-0.1), dict(every=-1), dict(every=2.0), dict(pull=0), dict(pull=1.5)):
        with pytest.raises(ValueError, match=next(iter(options))):
            Tracker(colours(), BOX, **options)


def test_a_box_for_a_face_that_is_followed_corrects_it():
    found = [tracker(frame(SPOTS, i)) for tracker in [Tracker(colours(), {0: BOX, 2: BOX + 8})] for i in range(4)]
    assert torch.allclose(found[2].boxes, BOX + 8) and [f.tracks.tolist() for f in found] == [[0]] * 4


def test_two_that_come_upon_one_face_become_one():
    tracker = Tracker(colours(), torch.cat([BOX - 8, BOX + 8]))
    assert [tracker(frame(SPOTS, i)).tracks.tolist() for i in range(4)] == [[0]] * 4


def test_the_film_itself_is_not_overwritten(tmp_path):
    write_video(tmp_path / 'a.mp4', [(0.0, np.zeros((48, 64, 3), np.uint8))])
    before = (tmp_path / 'a.mp4').read_bytes()
    with pytest.raises(ValueError, match='a.mp4 is the film itself'):
        track_video(colours(), tmp_path / 'a.mp4', video=tmp_path / '.' / 'a.mp4', boxes=BOX)
    assert (tmp_path / 'a.mp4').read_bytes() == before


def test_a_slow_film_is_not_cut_off(tmp_path):
    "A frame every three seconds: the last one is held, and nothing is missing."
    write_video(tmp_path / 'a.mkv', [(3.0 * i, page) for i, page in enumerate(pages(4))])
    frames, warned = said(tmp_path / 'a.mkv')
    assert len(frames) == 4 and warned == []


def test_who_leaves_is_lost():
    tracker = Tracker(colours(), BOX)
    found = [tracker(frame(SPOTS + torch.tensor([8.0 * i, 0.0], dtype=torch.float64), i)) for i in range(20)]
    left = [i for i, f in enumerate(found) if not len(f)]
    assert (
        left and left == list(range(left[0], 20)) and 10 <= left[0] <= 14
    )  # the face's middle, x 96, leaves 200 px after 13 frames


def test_only_five_arguments_by_position(tmp_path):
    with pytest.raises(TypeError, match='positional'):
        track_video(colours(), tmp_path / 'a.mp4', None, None, BOX, 0.5)
    with pytest.raises(ValueError, match='lost: expected a share'):
        track_video(colours(), tmp_path / 'a.mp4', boxes=BOX, lost=2)


def test_boxes_without_area_overlap_nothing():
    flat = torch.tensor([[0.0, 5.0, 10.0, 5.0]])
    assert overlap(flat, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).item() < 1e-3
    assert overlap(flat[:0], flat).shape == (0, 1) and overlap(flat, flat[:0]).shape == (1, 0)


def test_overlap_by_hand():
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert overlap(
        a, torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    ).tolist() == [pytest.approx([1, 1 / 3, 0])]


# From file to file


def test_video_to_table_and_drawing(tmp_path):
    there = [SPOTS + 0.7 * i for i in range(12)]
    write_video(
        tmp_path / 'in.mp4',
        [(i * i / 100, np.rint(255 * np.clip(spots(p), 0, 1)).astype(np.uint8)) for i, p in enumerate(there)],
        quality=4,
    )
    found = track_video(colours(), tmp_path / 'in.mp4', tmp_path / 'out.mp4', boxes=BOX, radius=2)
    assert (
        len(found) == 12
        and found.times.tolist() == pytest.approx([i * i / 100 for i in range(12)], abs=1e-4)
        and found.names[3] == '000003'
    )
    assert (found.points - torch.stack(there)).abs().max() < 0.3  # a video's colours are stored at half the resolution
    rows = list(csv.DictReader(open(tmp_path / 'out.csv')))
    assert (
        len(rows) == 36
        and float(rows[-1]['time']) == pytest.approx(1.21)
        and float(rows[-1]['y']) == pytest.approx(found.points[-1, -1, 1].item(), abs=1e-5)
    )
    drawn = list(read_video(tmp_path / 'out.mp4'))
    assert [f.time for f in drawn] == pytest.approx(found.times.tolist(), abs=1e-4)
    x, y = found.points[-1, 2].round().int().tolist()
    assert np.abs(drawn[-1].pixels[y, x].astype(int) - [255, 140, 0]).max() < 90 and drawn[-1].pixels[5, 5].max() < 20
    track_video(colours(), tmp_path / 'in.mp4', table=tmp_path / 'only.npz', boxes=BOX)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.mp4', 'only.npz', 'out.csv', 'out.mp4']


def test_frames_without_a_face_are_told(tmp_path):
    write_video(tmp_path / 'in.mkv', [(i / 25, page) for i, page in enumerate(pages(5))])
    with pytest.warns(UserWarning, match='no face in 5 of 5 frames, the first is frame 0'):
        found = track_video(colours(detector=hints({}, [])), tmp_path / 'in.mkv')
    assert len(found) == 0 and found.points.shape == (0, 3, 2) and len(found.photos) == 5


# Faces that lean


def test_a_track_keeps_how_its_face_leans():
    "Spots that turn by 4 degrees a frame, up to 120: followed, with the roll of the line from the first to the second."
    scheme = Scheme('three', 3, ((0, 1),), eyes=((0,), (1,)))
    middle = torch.tensor([99.5, 89.5], dtype=torch.float64)
    eyes = SPOTS[1] - SPOTS[0]
    start = math.degrees(math.atan2(eyes[1], eyes[0]))
    tracker = Tracker(Predictor((Colours(), Config(size=128, depth=3)), scheme=scheme), BOX, every=0, pull=1.0)
    for i in range(31):
        points = turn_about(SPOTS, middle, torch.tensor(4.0 * i))
        found = tracker(frame(points, i))
        assert len(found) == 1 and (found.points[0] - points).norm(dim=-1).max() < 0.3
    assert found.rolls.item() == pytest.approx(start + 116, abs=2)  # the roll that the frame before it showed


def test_a_detected_lean_begins_a_track():
    "A film that lies on its side: the detector says so once, and the track keeps it."
    middle = torch.tensor([99.5, 89.5], dtype=torch.float64)
    points = turn_about(SPOTS, middle, torch.tensor(90.0))
    size = (BOX[0, 2:] - BOX[0, :2]) / 2
    place = turn_about((BOX[0, :2] + BOX[0, 2:]) / 2, middle, torch.tensor(90.0))
    one = torch.tensor([90.0], dtype=torch.float64)
    seen = Detections(torch.cat([place - size, place + size])[None], torch.ones(1), one, one)
    tracker = Tracker(colours(detector=lambda photo: seen), every=0)
    for i in range(4):
        found = tracker(frame(points, i))
        assert found.rolls.tolist() == [90] and (found.points[0] - points).norm(dim=-1).max() < 0.1


def test_a_stop_in_the_middle_of_a_film_keeps_what_was_found(tmp_path, monkeypatch):
    write_video(tmp_path / 'in.mp4', [(i / 25, frame(SPOTS).pixels) for i in range(8)])
    predictor, calls = colours(), []
    look = predictor.look

    def tired(*given, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return look(*given, **options)

    monkeypatch.setattr(predictor, 'look', tired)
    with pytest.warns(UserWarning, match='in.mp4: stopped; what was found in the first 4 frames is kept'):
        found = track_video(predictor, tmp_path / 'in.mp4', tmp_path / 'out.mkv', tmp_path / 'out.csv', boxes=BOX)
    assert len(found) == 4 and len(list(read_video(tmp_path / 'out.mkv'))) == 4
    assert promised_frames(tmp_path / 'in.mp4') == 8
