"Pictures of every kind against pixels worked out by hand, orientations against numpy, crops against a kernel."

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from subpixel_nb.data.datasets import DataError
from subpixel_nb.inference.photos import cut_square, list_photos, read_photo


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(image: Image.Image, **options) -> bytes:
    image.save(buffer := io.BytesIO(), 'png', **options)
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    "A PNG of 16 bits a colour, of (H, W, 3) uint16: Pillow writes none."

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    head = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


# Where a picture comes from


def test_every_source_gives_the_same_pixels(colours, tmp_path):
    image = Image.fromarray(colours)
    (tmp_path / 'a.png').write_bytes(png(image))
    tensor = torch.from_numpy(colours).movedim(-1, 0)
    for source in (
        tmp_path / 'a.png',
        str(tmp_path / 'a.png'),
        png(image),
        bytearray(png(image)),
        memoryview(png(image)),
        io.BytesIO(png(image)),
        image,
        colours,
        tensor,
        tensor.float() / 255,
        colours / 255,
        (colours / 255).astype(np.float32),
        colours.astype(np.uint16) * 257,
        np.dstack([colours, np.full((20, 30), 255, np.uint8)]),
        np.asfortranarray(colours),
        read_photo(colours),
    ):
        photo = read_photo(source)
        assert photo.size == (30, 20) and (photo.pixels == colours).all() and not photo.turned
        assert photo.tensor().shape == (3, 20, 30) and (photo.tensor() == tensor).all()
    assert read_photo(tensor.bfloat16() / 255).pixels.astype(int) - colours == pytest.approx(0, abs=1)
    assert (
        read_photo(tmp_path / 'a.png').name == str(tmp_path / 'a.png')
        and read_photo(colours).name == 'photo'
        and read_photo(colours, 'x').name == 'x'
    )


def test_grey_has_three_equal_channels(colours):
    grey = colours[..., 0]
    for source in (
        grey,
        grey[..., None],
        grey / 255,
        grey.astype(np.uint16) * 257,
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
        Image.fromarray(grey),
        png(Image.fromarray(grey)),
        png(Image.fromarray(grey.astype(np.uint16) * 257)),
    ):
        assert (read_photo(source).pixels == grey[..., None]).all()
    assert set(np.unique(read_photo(Image.fromarray(grey > 99)).pixels)) == {0, 255}


def test_deep_pixels_are_rounded():
    deep = np.array([[0, 128, 129, 385, 386, 65535, 65406, 65407]], np.uint16)  # 257 v +- 128 is v
    expected = [[0, 0, 1, 1, 2, 255, 254, 255]]
    for source in (deep, png(Image.fromarray(deep)), Image.fromarray(deep.astype(np.int32))):
        assert read_photo(source).pixels[..., 0].tolist() == expected
    assert read_photo(np.array([[0, 0.001, 0.002, 0.5, 1.0]])).pixels[..., 0].tolist() == [[0, 0, 1, 128, 255]]


def test_twelve_bits_in_sixteen_are_noticed():
    with pytest.warns(UserWarning, match='largest value is 4000 of 65535: really 8 or 12 bits'):
        read_photo(np.full((4, 4), 4000, np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_photo(np.full((4, 4), 65535, np.uint16)), read_photo(np.zeros((4, 4), np.uint16))


def test_eight_bits_in_sixteen_are_noticed(colours):
    with pytest.warns(UserWarning, match='255 of 65535: really 8 or 12 bits'):
        read_photo(np.full((4, 4), 255, np.uint16))
    deep = png16(np.full((4, 5, 3), 4000, np.uint16))
    with pytest.warns(UserWarning, match='deep.png: 16 bits'):
        assert (read_photo(deep, 'deep.png').pixels == 15).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(read_photo(png16(colours.astype(np.uint16) * 257)).pixels, colours)


def test_floats_that_overshoot_by_a_hair():
    assert read_photo(np.array([[-1e-7, 0.5, 1 + 1e-7]])).pixels[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match='must be in 0..1, got 0..1.01'):
        read_photo(np.array([[0, 1.01]]))


def test_what_else_reads_it_is_said():
    for name, said in (('a.heic', 'install pillow-heif'), ('b.MP4', 'Films are read by `track_video`')):
        with pytest.raises(DataError, match=f'{name}: not a readable photo .*{said}'):
            read_photo(b'something', name)


def test_transparency_is_laid_on_white(colours):
    alpha = np.random.default_rng(1).integers(0, 256, (20, 30, 1)).astype(float)
    right = colours * (alpha / 255) + 255 * (1 - alpha / 255)
    rgba = np.dstack([colours, alpha.astype(np.uint8)])
    for source in (rgba, rgba / 255, Image.fromarray(rgba), png(Image.fromarray(rgba))):
        assert np.abs(read_photo(source).pixels - right).max() <= 1
    grey = Image.fromarray(colours[..., 0]).convert('LA')
    grey.putalpha(0)
    assert (read_photo(grey).pixels == 255).all()
    palette = Image.fromarray(colours).quantize(4)
    seen = read_photo(png(palette, transparency=2)).pixels
    assert (seen[np.asarray(palette) == 2] == 255).all() and (
        seen[np.asarray(palette) != 2] == np.asarray(palette.convert('RGB'))[np.asarray(palette) != 2]
    ).all()


def test_inks():
    "Cyan, magenta and yellow take red, green and blue away; black takes all."
    inks = Image.merge(
        'CMYK',
        [
            Image.fromarray(np.array([row], np.uint8))
            for row in ([0, 255, 0, 0, 0, 128], [0, 0, 255, 0, 0, 0], [0, 0, 0, 255, 0, 0], [0, 0, 0, 0, 255, 0])
        ],
    )
    assert read_photo(inks).pixels[0].tolist() == [
        [255, 255, 255],
        [0, 255, 255],
        [255, 0, 255],
        [255, 255, 0],
        [0, 0, 0],
        [127, 255, 255],
    ]


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_exif_is_applied(colours, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = png(Image.fromarray(colours), exif=exif)
    photo = read_photo(stored)
    assert np.array_equal(photo.pixels, UPRIGHT[orientation](colours)) and photo.turned == (orientation > 1)
    assert np.array_equal(read_photo(Image.open(io.BytesIO(stored))).pixels, photo.pixels)
    left = read_photo(stored, upright=False)
    assert np.array_equal(left.pixels, colours) and not left.turned
    Image.fromarray(colours).save(buffer := io.BytesIO(), 'tiff', exif=exif)  # which Pillow turns by itself
    for upright in (True, False):
        photo = read_photo(buffer.getvalue(), upright=upright)
        assert np.array_equal(photo.pixels, UPRIGHT[orientation](colours) if upright else colours) and photo.turned == (
            upright and orientation > 1
        )


def test_the_first_frame_of_several():
    Image.new('RGB', (4, 3), 'red').save(
        buffer := io.BytesIO(), 'gif', save_all=True, append_images=[Image.new('RGB', (4, 3), 'blue')]
    )
    assert read_photo(buffer.getvalue()).pixels[0, 0].tolist() == [255, 0, 0]


# Pictures that cannot be used


@pytest.mark.parametrize(
    'source, message',
    [
        (
            np.where(np.arange(60).reshape(4, 5, 3) == 33, np.nan, 0.5),
            r'x: 1 values are NaN or infinite, the first at pixel x 1, y 2: mend',
        ),
        (torch.full((3, 4, 5), torch.inf), '60 values are NaN or infinite, the first at pixel x 0, y 0'),
        (np.full((4, 5), 200.0), r'in 0..1, got 200..200: divide by 255'),
        (np.full((4, 5), -0.1), r'in 0..1, got -0.1..-0.1'),
        (np.zeros((4, 5), np.int64), 'expected uint8 .* got int64'),
        (np.zeros((4, 5), bool), 'got bool'),
        (np.zeros((3, 40, 50), np.uint8), r'got \(3, 40, 50\). Channels come last'),
        (np.zeros((40, 50, 2), np.uint8), r'expected an array .* got \(40, 50, 2\)'),
        (np.zeros(5, np.uint8), r'got \(5,\)'),
        (np.zeros((0, 5, 3), np.uint8), r'a picture without pixels: \(0, 5, 3\)'),
        (torch.zeros(40, 50, 3), r'expected a tensor \(3, H, W\)'),
        (Image.fromarray(np.array([[70000]], np.int32)), 'more than 16 bits'),
        (Image.fromarray(np.array([[300.0]], np.float32)), 'in 0..1, got 300..300'),
        (b'nothing of the kind', 'not a readable photo'),
        (None, 'got NoneType'),
        (3, 'got int'),
    ],
)
def test_bad_pictures(source, message):
    with pytest.raises(DataError, match=message):
        read_photo(source, 'x')


def test_bad_files(tmp_path, colours, monkeypatch):
    Image.fromarray(colours.repeat(9, 0).repeat(9, 1)).save(tmp_path / 'a.jpg')
    (tmp_path / 'half.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes()[:-900])
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)  # as another library may have left it
    with pytest.raises(DataError, match=r'half.jpg: not a readable photo \(OSError: image file is truncated'):
        read_photo(tmp_path / 'half.jpg')
    (tmp_path / 'empty.png').write_bytes(b'')
    with pytest.raises(DataError, match='empty.png: not a readable photo'):
        read_photo(tmp_path / 'empty.png')
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / 'none.png')


# Many


def test_lists_of_photos(tmp_path, colours):
    image = Image.fromarray(colours)
    for name in ('b.png', 'sub/a.JPG', 'c.webp', '.hidden/d.png', '.e.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name, {'.JPG': 'jpeg'}.get((tmp_path / name).suffix))
    (tmp_path / 'notes.txt').write_text('')
    assert [name for name, _ in list_photos(tmp_path)] == ['b.png', 'c.webp', 'sub/a.JPG']
    assert [name for name, _ in list_photos(str(tmp_path / 'b.png'))] == ['b.png']

    def names(source):
        return [name for name, _ in list_photos(source)]

    assert names([image, 'x/y.png', colours]) == ['photo-1', 'x/y.png', 'photo-3'] and names(
        {'me': image, 3: colours}
    ) == ['me', '3']
    assert names(np.stack([colours] * 3)) == names(torch.zeros(3, 3, 4, 5)) == [
        'photo-1',
        'photo-2',
        'photo-3',
    ] and names(colours) == ['photo-1']
    with pytest.raises(FileNotFoundError, match='none: no such photo or folder'):
        list_photos(tmp_path / 'none')
    (tmp_path / 'dull').mkdir()
    with pytest.raises(FileNotFoundError, match='dull: no photo in this folder'):
        list_photos(tmp_path / 'dull')


def test_folders_that_links_lead_to_are_listed_once(tmp_path, colours):
    "A link elsewhere, one that leads back up, one to a file, and one to nothing."
    for name in ('photos/a.png', 'disk/deep/b.ppm', 'disk/c.webp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(tmp_path / name)
    (tmp_path / 'photos/linked').symlink_to(tmp_path / 'disk')
    (tmp_path / 'disk/deep/up').symlink_to(tmp_path / 'photos')
    (tmp_path / 'photos/file.webp').symlink_to(tmp_path / 'disk/c.webp')
    (tmp_path / 'photos/none').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'photos/folder.png').mkdir()
    names = [name for name, _ in list_photos(tmp_path / 'photos')]
    assert names == ['a.png', 'file.webp', 'linked/c.webp', 'linked/deep/b.ppm']
    assert [name for name, _ in list_photos(tmp_path / 'photos/linked')] == [
        'c.webp',
        'deep/b.ppm',
        'deep/up/a.png',
        'deep/up/file.webp',
    ]


@pytest.mark.parametrize('suffix', ['.ppm', '.pgm', '.tga', '.psd', '.jp2'])
def test_a_folder_holds_every_kind_that_is_read_alone(tmp_path, suffix):
    (tmp_path / f'a{suffix}').write_bytes(b'')
    assert [name for name, _ in list_photos(tmp_path)] == [f'a{suffix}']


def test_an_animation_says_that_one_picture_is_read(tmp_path):
    pages = [Image.new('L', (20, 20), level) for level in (50, 100)]
    pages[0].save(tmp_path / 'a.gif', save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match='a.gif: 2 pictures are in it, and the first is read'):
        assert abs(int(read_photo(tmp_path / 'a.gif').pixels[0, 0, 0]) - 50) < 3


# Squares


def cubic(x: np.ndarray) -> np.ndarray:
    "Keys' kernel with a = -1/2."
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


@pytest.mark.parametrize('side', [11.3, 32.0, 190.7])
def test_pixels_of_a_square_by_the_kernel(side):
    "Each pixel of the view is a mean under Keys' kernel, widened where it shrinks, centred where square_map says."
    rng, size, (cx, cy) = np.random.default_rng(3), 32, (151.7, 149.2)
    pixels = rng.integers(60, 200, (300, 320), dtype=np.uint8)
    view = cut_square(read_photo(pixels), (cx, cy, side), size)[0]
    wide, weights = max(side / size, 1), []
    for centre, count in ((cx, 320), (cy, 300)):
        at = centre + ((np.arange(size) + 0.5) / size - 0.5) * side  # where each view pixel's centre lies in the photo
        w = cubic((np.arange(count) - at[:, None]) / wide)
        weights.append(w / w.sum(1, keepdims=True))
    assert np.abs(view - weights[1] @ pixels @ weights[0].T).max() <= 1.1  # 8 bits between the two passes


def test_a_square_over_the_border_is_black_beyond():
    view = cut_square(read_photo(np.full((50, 60), 200, np.uint8)), (59.5, 24.5, 40), 40)[0]
    assert (view[:, :18] == 200).all() and (view[:, 22:] == 0).all()
    assert cut_square(read_photo(np.full((50, 60), 200, np.uint8)), (30, 25, 20), 16, 5).shape == (3, 26, 26)


@pytest.mark.parametrize(
    'square',
    [(200, 20, 30), (20, -40, 30), (20, 20, 0), (20, 20, -3), (20, 20, np.nan), (np.inf, 20, 9), (20, 20, 1e6)],
)
def test_squares_that_do_not_fit(square):
    with pytest.raises(DataError, match='x: (a face in|expected) a (finite )?square'):
        cut_square(read_photo(np.zeros((50, 60), np.uint8), 'x'), square, 32)


# What people hand over instead of a photo


@pytest.mark.parametrize('read', [read_photo, list_photos])
@pytest.mark.parametrize(
    'source, said',
    [
        ('https://example.org/a.jpg', 'https://example.org/a.jpg: a URL, and only files are read'),
        ('s3://bucket/a.jpg', 's3://bucket/a.jpg: a URL'),
        ('photos/*.jpg', r'photos/\*.jpg: no such photo or folder: a pattern; give the folder'),
        ('photos/0[12].jpg', 'a pattern; give the folder'),
        ('nowhere.jpg', 'nowhere.jpg: no such photo or folder$'),
    ],
)
def test_paths_that_are_none(read, source, said):
    with pytest.raises(FileNotFoundError, match=said):
        read(source)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(colours, tmp_path):
    (tmp_path / 'a[1].png').write_bytes(png(Image.fromarray(colours)))
    assert (read_photo(tmp_path / 'a[1].png').pixels == colours).all()
    assert [name for name, _ in list_photos(str(tmp_path / 'a[1].png'))] == ['a[1].png']


def test_a_generator_is_told_to_become_a_list(tmp_path):
    [(_, one)] = list_photos(tmp_path / name for name in ('a.jpg', 'b.jpg'))
    for several in (one, {'a.jpg', 'b.jpg'}, map(str, 'ab')):
        with pytest.raises(DataError, match=r'got (generator|set|map). For several photos give a list: list\(...\)'):
            read_photo(several)


@pytest.mark.filterwarnings('error')
def test_nothing_is_left_open_and_nothing_warns(colours, tmp_path):
    "A file handed over is closed, since its caller cannot; one in memory stays open. Arrays that are read-only do."
    (tmp_path / 'a.png').write_bytes(png(Image.fromarray(colours)))
    file = open(tmp_path / 'a.png', 'rb')
    assert (read_photo(file).pixels == colours).all() and file.closed
    memory = io.BytesIO(png(Image.fromarray(colours)))
    assert (read_photo(memory).pixels == colours).all() and not memory.closed
    colours.setflags(write=False)
    assert (read_photo(colours).tensor().movedim(0, -1).numpy() == colours).all()
    assert (read_photo(read_photo(colours).pixels).pixels == colours).all()
    floats = np.float32(colours / 255)
    floats.setflags(write=False)
    assert (read_photo(floats).pixels == colours).all()
