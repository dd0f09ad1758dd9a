"The survey of a dataset: planted faults are found and named, counts are the official ones on real annotations."

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

mpl.use('Agg')
from subpixel_nb.data.checks import ADVICE, check_dataset, contact_sheet, count_table, plot_survey, problem_table
from subpixel_nb.data.datasets import CATALOGUE


def write_face(path, seed: int, size: int = 120):
    "A photo of noise and 68 points inside it, counted from 1."
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path.with_suffix('.png'))
    path.with_suffix('.pts').write_text('\n'.join(f'{x:.3f} {y:.3f}' for x, y in rng.uniform(20, 100, (68, 2))))


@pytest.fixture
def public(tmp_path):
    "A 300W root with 3 + 2 + 1 faces and no afw, lfpw/trainset or ibug."
    for f, (folder, count) in enumerate((('helen/trainset', 3), ('helen/testset', 2), ('lfpw/testset', 1))):
        for i in range(count):
            write_face(tmp_path / folder / f'ü{i}', 10 * f + i)  # all different: the survey finds equal faces
    return tmp_path


def test_a_sound_dataset_has_counts_and_no_problem(public):
    found = check_dataset('300w', public)
    table = count_table(found).set_index(['split', 'part'])
    assert len(found.faces) == len(found.sizes) == 6 and set(found.sizes.values()) == {(120, 120)}
    assert table.loc[('train', ''), ['found', 'official', 'missing']].tolist() == [3, 3148, 3145]
    assert table.loc[('train', 'afw'), ['found', 'official', 'missing']].tolist() == [0, 337, 337]
    assert table.loc[('common', ''), 'found'] == 3 and table.loc[('full', 'lfpw/testset'), 'found'] == 1
    assert [kind for kind, _ in found.problems] == ['split not there'] and 'challenge' in found.problems[0][1]
    assert len(contact_sheet(found, 4).axes) == 4 and len(plot_survey(found).axes) == 2


FAULTS = {
    'photo not readable': lambda p: p.with_suffix('.png').write_bytes(b''),
    'points off the photo': lambda p: p.with_suffix('.pts').write_text(
        '\n'.join(f'{200 + i} {100 + i % 7}' for i in range(68))
    ),
    'face not readable': lambda p: p.with_suffix('.pts').write_text('1 2\n3 x\n'),
    'same face twice': lambda p: p.with_suffix('.pts').write_bytes(p.with_name('ü1.pts').read_bytes()),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_each_fault_is_named_with_its_file_and_advice(public, kind):
    FAULTS[kind](public / 'helen/testset/ü0')
    found = check_dataset('300w', public)
    problems = [p for p in found.problems if p[0] != 'split not there']
    assert [p[0] for p in problems] == [kind] and 'helen/testset/ü0' in problems[0][1]
    row = problem_table(found).set_index('problem').loc[kind]
    assert row['count'] == 1 and row.advice == ADVICE[kind] and row.example == problems[0][1]


def test_annotations_without_photos_are_counted(public):
    listing = public / 'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt'
    listing.parent.mkdir(parents=True)
    points = [' '.join(map(str, np.random.default_rng(i).uniform(10, 90, 196).round(2))) for i in range(4)]
    listing.write_text('\n'.join(f'{p} 10 10 90 90 1 0 0 0 0 {i % 2} a/{i}.jpg' for i, p in enumerate(points)))
    found = check_dataset('wflw', public)
    assert (found.found['test'], found.found['largepose'], found.found['blur'], found.found['train']) == (4, 4, 2, None)
    assert [k for k, _ in found.problems].count('photo not there') == 4
    assert not [k for k, _ in check_dataset('wflw', public, open_all=False).problems if k == 'photo not there']
    with pytest.raises(ValueError, match='nothing to show'):
        contact_sheet(found)


def test_wrong_roots_and_drawn_datasets(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist; it should hold afw'):
        check_dataset('300w', tmp_path / 'none')
    write_face(tmp_path / 'up/300w/helen/trainset/a', 0)
    with pytest.raises(FileNotFoundError, match='Did you mean root .*300w'):
        check_dataset('300w', tmp_path / 'up')
    import subpixel_nb.data.synthetic  # noqa: F401

    with pytest.raises(ValueError, match='drawn, not read'):
        check_dataset('synthetic', tmp_path)
    with pytest.raises(ValueError, match="unknown dataset '300'"):
        check_dataset('300', tmp_path)
    assert 'synthetic' in CATALOGUE


@pytest.mark.slow
@pytest.mark.data
def test_real_counts(shared_data):
    found = check_dataset('300w', shared_data / '300w', open_all=False)
    table = count_table(found).set_index(['split', 'part']).found
    assert (table['train', ''], table['common', ''], table['challenge', '']) == (1675, 554, 9) and found.problems == []
    found = check_dataset('wflw', shared_data / 'wflw', open_all=False)
    assert {k: v for k, v in found.found.items() if v} == dict(
        test=1966, largepose=326, expression=314, illumination=698, makeup=206, occlusion=736, blur=773
    )
    import subpixel_nb.data.releases  # noqa: F401

    found = check_dataset('cofw68', shared_data / 'cofw68')
    assert found.found == {'test': 507} and [k for k, _ in found.problems].count('photo not there') == 507
