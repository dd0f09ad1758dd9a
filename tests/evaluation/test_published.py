"The paper's tables against its text and against numbers typed from it by hand."

import re

import pytest

from subpixel_nb.data.datasets import CATALOGUE
from subpixel_nb.evaluation import published
from subpixel_nb.evaluation.published import (
    REFERENCE_YEARS,
    TABLES,
    TEST_SETS,
    PaperRow,
    find_table,
    parse_column,
    tables_for,
)


@pytest.mark.parametrize(
    'table, method, label, value',
    [
        ('1', 'Global soft-argmax', 'NME_box %', 3.19),
        ('2', '+ proposed hm (w/o 3.3)', 'NME_ic %', 4.00),
        ('3', '7 x 7', 'NME_box %', 2.07),
        ('4a', 'GCN', 'AUC_ic@10', 0.589),
        ('4b', 'HG-HSLE', 'NME_ic %, Challenge', 5.03),
        ('5', 'HR-Net', 'FR_ic@10 %', 0.19),
        ('6', 'KDN', 'AUC_box@7 %, Full', 60.3),
        ('6', 'KDN', 'NME_diag %, Full', None),
        ('7', 'LUVLi', 'AUC_box@7 %, Menpo', 71.9),
        ('7', 'Softlabel', 'NME_box %, COFW-68', 2.92),
        ('8', 'iCCR', 'AUC_ic@8 %, 49 points', 51.41),
        ('9', 'TCDCN', 'NME_ic %, 68 points', 15.0),
        ('10', 'ESR', 'FR_ic@10 %', 35.24),
        ('11', 'CCL', 'NME_diag %, Frontal', 2.17),
        ('12', 'ODN', 'NME_ic %, Full', 4.17),
        ('13', 'HPM', 'NME_ic %', 7.59),
        ('13', 'Human', 'FR_ic@10 %', None),
        ('10', 'Ours', 'NME_ic %', 3.72),
        ('12', 'LUVLi', 'NME_ic %, Common', 2.76),
    ],
)
def test_values_typed_from_the_paper(table, method, label, value):
    assert TABLES[table].value(method, label) == value


def text_blocks(text: str) -> list[list[list[str]]]:
    "The tab-separated tables of the paper's text, in its order: lines of cells without markup."
    blocks, inside = [], False
    for line in text.splitlines():
        if '\t' in line:
            if not inside:
                blocks.append([])
            blocks[-1].append([re.sub(r'</?\w+>', '', cell).strip() for cell in line.split('\t')])
        inside = '\t' in line
    return blocks


def method(cell: str) -> str:
    "A method's name in the text, without its reference, which is often not legible."
    cell = cell.replace(r'$\ell_2$', 'l2').replace('\u00d7', 'x')
    return cell if cell.startswith('[') else re.sub(r'\s*\[.*$', '', cell).encode('ascii', 'ignore').decode().strip()


@pytest.fixture(scope='module')
def paper(shared_data) -> str:
    path = shared_data.parent / 'paper' / 'subpixel_heatmap_regression.md'
    if not path.is_file():
        pytest.skip('no ../shared/paper beside the checkout: the tables are not compared with the text')
    return path.read_text('utf-8')


@pytest.fixture(scope='module')
def read(paper) -> dict[str, dict[str, tuple[str, list[str]]]]:
    "Tables of the text: {number: {method: (its cell in the text, its other cells)}}."
    blocks = text_blocks(paper)
    assert len(blocks) == 13
    flat = {str(n): block for n, block in enumerate(blocks, 1)}
    four = flat.pop('4')
    flat |= {'4a': [line[:4] for line in four], '4b': [line[4:] for line in four]}
    for number in ('3', '8', '9'):
        flat[number] = [list(line) for line in zip(*flat[number])]  # printed sideways
    return {
        n: {
            method(line[0]): (line[0], line[1:])
            for line in block
            if any(re.fullmatch(r'\d+\.\d+', c) for c in line[1:])
        }
        for n, block in flat.items()
    }


@pytest.mark.data
def test_every_number_against_the_text(read):
    assert set(read) == set(TABLES)
    compared = 0
    for number, table in TABLES.items():
        assert [row.method for row in table.rows] == list(read[number]), f'table {number}'
        for row in table.rows:
            there = [None if cell == '-' else cell for cell in read[number][row.method][1]]
            if (number, row.method) == ('4a', 'MHHN'):
                assert there == ['4.77', None, ''] and 'missing' in row.doubt  # the one cell that the text lost
                there[-1] = None
            assert list(row.printed) == there, f'table {number}, {row.method}'
            compared += sum(cell is not None for cell in there)
    assert compared == 278


@pytest.mark.data
def test_references_against_the_text(read, paper):
    years = {
        int(n): int(re.findall(r'\b(?:19|20)\d\d\b', entry)[-1])
        for n, entry in re.findall(r'^(?:- )?\[(\d+)\] (.+)$', paper, re.M)
    }
    assert len(years) == 66
    for number, table in TABLES.items():
        for row in table.rows:
            digits = re.search(
                r' \[\D*(\d+)\D*\]\D*$', ' ' + read[number][row.method][0] if row.method[0] != '[' else ''
            )
            if row.reference:
                assert int(digits[1]) == row.reference and row.year == years[row.reference], (number, row)
            elif digits:
                assert f'[{digits[1]}]' in row.doubt, (number, row)
            elif '[' in read[number][row.method][0] or not read[number][row.method][0].isascii():
                assert row.doubt or row.method in ('3 x 3', '5 x 5', '7 x 7', 'l2 heatmap regression'), (number, row)
    assert {r.reference for t in TABLES.values() for r in t.rows if r.reference} == set(REFERENCE_YEARS)


@pytest.mark.data
@pytest.mark.parametrize('number, headers', [('10', ['NME', 'AUC', 'FR']), ('13', ['NME', 'FR'])])
def test_columns_are_in_the_order_of_the_text(paper, number, headers):
    block = text_blocks(paper)[int(number) - 1]
    assert (
        all(h in cell for h, cell in zip(headers, block[0][1:]))
        and [c.metric for c in TABLES[number].columns] == headers
    )


def test_columns_are_what_the_catalogue_scores():
    "Landmarks, subsets, counts and normaliser of each column agree with the catalogue, where it has the dataset."
    seen = set()
    for c in (c for t in TABLES.values() for c in t.columns):
        assert (c.cutoff is None) == (c.metric == 'NME')
        entry = CATALOGUE.get(c.dataset)
        if entry is None or entry.scheme is None:
            continue
        seen.add(c.dataset)
        if c.points != 49:
            assert entry.scheme.points == c.points
        split = entry.split(c.subset or entry.test)
        assert c.faces is None or split.count == c.faces
        if c.normaliser == 'ic':
            assert entry.scheme.eyes
    assert {'wflw', '300w', '300w-private'} <= seen


def test_totals_that_cannot_be():
    "Full of 300W within the rounding of its parts, except in the three rows that carry a note."
    odd = [
        row.method
        for row in TABLES['12'].rows
        if abs((554 * row.values[0] + 135 * row.values[1]) / 689 - row.values[2]) > 0.01 + 1e-9
    ]
    assert (
        odd == ['CPM+SRB', 'LAB (w/B)', 'Ours'] == [row.method for row in TABLES['12'].rows if 'weighted' in row.note]
    )
    assert '2.91' in TABLES['12'].rows[-1].note and round((554 * 2.61 + 135 * 4.13) / 689, 2) == 2.91


def test_tables_for():
    def numbers(name: str) -> list[str]:
        return [t.number for t in tables_for(name)]

    assert (
        numbers('wflw') == ['2', '4a', '10']
        and numbers('300w') == ['4b', '12']
        and numbers('300w-private') == ['1', '3', '7']
    )
    assert numbers('cofw') == ['5', '13'] and numbers('aflw') == ['6', '11'] and numbers('300vw-c') == ['8', '9']
    assert numbers('cofw68') == numbers('menpo') == ['7'] and numbers('synthetic') == []
    assert sorted(t for name in TEST_SETS for t in numbers(name)) == sorted([*TABLES, '7', '7'])
    with pytest.raises(ValueError, match="unknown dataset 'wlfw'; known: wflw"):
        tables_for('wlfw')


@pytest.mark.parametrize(
    'fault, message',
    [
        (lambda: find_table('14'), r"unknown table '14'; known: 1, 4b, 4a"),
        (lambda: TABLES['5'].value('Wing', 'NME'), "unknown column of table 5 'NME'"),
        (lambda: TABLES['5'].value('wing', 'NME_ic %'), "unknown method of table 5 'wing'; known: Wing"),
        (lambda: parse_column('NME_ic@8', 'wflw'), 'expected such as'),
        (lambda: parse_column('AUC_ic', 'wflw'), 'expected such as'),
        (lambda: parse_column('NME_ic', '300w', 'chalenge'), "unknown subset of 300w 'chalenge'; known: challenge"),
        (lambda: parse_column('NME_ic', 'wfl'), "unknown dataset 'wfl'; known: wflw"),
    ],
)
def test_unknown_names(fault, message):
    with pytest.raises(ValueError, match=message):
        fault()


@pytest.mark.parametrize(
    'text, notes, message',
    [
        ('A | | 1.0 2.0', {}, r"'A \| \| 1.0 2.0': expected 1 cells, got 2"),
        ('A | | 1.0', dict(remarks={'B': 'x'}), 'there is a note on B, but no row of that name'),
        ('A | | 1.0', dict(apart=['B', 'C']), 'there is a note on B, C, but no row of that name'),
    ],
)
def test_typing_faults(text, notes, message):
    with pytest.raises(ValueError, match=message):
        published._add_table('99', 'title', 'protocol', [parse_column('NME_ic', 'wflw')], text, **notes)
    assert '99' not in TABLES


def test_labels_and_order():
    assert (
        PaperRow('LUVLi', 24, ('3.23',)).label == 'LUVLi [24], 2020' and PaperRow('SAN', None, (None,)).label == 'SAN'
    )
    assert PaperRow('Ours', None, ('2.94',)).label == 'Ours (paper)' and PaperRow('x', None, ('15.0', None)).values == (
        15.0,
        None,
    )
    assert sorted(['10', '4b', '9', '4a'], key=lambda n: TABLES[n].order) == ['4a', '4b', '9', '10']
