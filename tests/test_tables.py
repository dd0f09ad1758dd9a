"The paper's tables against its text and against numbers typed from it, and what is put beside them, by hand."
import dataclasses
import html.parser
import re

import numpy as np
import pandas as pd
import pytest
import torch

from subpixel_nb.datasets import CATALOGUE, find_dataset, load_faces
from subpixel_nb.evaluation import results_table
from subpixel_nb.tables import (TABLES, TESTS, YEARS, beside, best_gains, column, escape_latex, find_table, render, save_tables,
                                tables_for, worst)


def results(first: str = 'ic@10', *rows: tuple) -> pd.DataFrame:
    "Results in the columns of `results_table`: subset, faces, decoder, NME ic, box, diag, AUC, FR."
    return pd.DataFrame(rows or [('test', 2500, 'local', 4.0, 2.0, 1.4, 63.14, 2.0)],
                        columns=['subset', 'faces', 'decoder', 'NME_ic %', 'NME_box %', 'NME_diag %', f'AUC_{first} %', f'FR_{first} %'])


# The data

@pytest.mark.parametrize('table, method, label, value', [
    ('1', 'Global soft-argmax', 'NME_box %', 3.19), ('2', '+ proposed hm (w/o 3.3)', 'NME_ic %', 4.00), ('3', '7 x 7', 'NME_box %', 2.07),
    ('4a', 'GCN', 'AUC_ic@10', 0.589), ('4b', 'HG-HSLE', 'NME_ic %, Challenge', 5.03), ('5', 'HR-Net', 'FR_ic@10 %', 0.19),
    ('6', 'KDN', 'AUC_box@7 %, Full', 60.3), ('6', 'KDN', 'NME_diag %, Full', None), ('7', 'LUVLi', 'AUC_box@7 %, Menpo', 71.9),
    ('7', 'Softlabel', 'NME_box %, COFW-68', 2.92), ('8', 'iCCR', 'AUC_ic@8 %, 49 points', 51.41), ('9', 'TCDCN', 'NME_ic %, 68 points', 15.0),
    ('10', 'ESR', 'FR_ic@10 %', 35.24), ('11', 'CCL', 'NME_diag %, Frontal', 2.17), ('12', 'ODN', 'NME_ic %, Full', 4.17),
    ('13', 'HPM', 'NME_ic %', 7.59), ('13', 'Human', 'FR_ic@10 %', None), ('10', 'Ours', 'NME_ic %', 3.72),
    ('12', 'LUVLi', 'NME_ic %, Common', 2.76)])
def test_values_typed_from_the_paper(table, method, label, value):
    assert TABLES[table].value(method, label) == value


def text_blocks(text: str) -> list[list[list[str]]]:
    "The tab-separated tables of the paper's text, in its order: lines of cells without markup."
    blocks, inside = [], False
    for line in text.splitlines():
        if '\t' in line:
            if not inside: blocks.append([])
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
    if not path.is_file(): pytest.skip('no ../shared/paper beside the checkout: the tables are not compared with the text')
    return path.read_text('utf-8')


@pytest.fixture(scope='module')
def read(paper) -> dict[str, dict[str, tuple[str, list[str]]]]:
    "Tables of the text: {number: {method: (its cell in the text, its other cells)}}."
    blocks = text_blocks(paper)
    assert len(blocks) == 13
    flat = {str(n): block for n, block in enumerate(blocks, 1)}
    four = flat.pop('4')
    flat |= {'4a': [line[:4] for line in four], '4b': [line[4:] for line in four]}
    for number in ('3', '8', '9'): flat[number] = [list(line) for line in zip(*flat[number])]       # printed sideways
    return {n: {method(line[0]): (line[0], line[1:]) for line in block if any(re.fullmatch(r'\d+\.\d+', c) for c in line[1:])}
            for n, block in flat.items()}


def test_every_number_against_the_text(read):
    assert set(read) == set(TABLES)
    compared = 0
    for number, table in TABLES.items():
        assert [row.method for row in table.rows] == list(read[number]), f'table {number}'
        for row in table.rows:
            there = [None if cell == '-' else cell for cell in read[number][row.method][1]]
            if (number, row.method) == ('4a', 'MHHN'):
                assert there == ['4.77', None, ''] and 'missing' in row.doubt                     # the one cell that the text lost
                there[-1] = None
            assert list(row.printed) == there, f'table {number}, {row.method}'
            compared += sum(cell is not None for cell in there)
    assert compared == 278


def test_references_against_the_text(read, paper):
    years = {int(n): int(re.findall(r'\b(?:19|20)\d\d\b', entry)[-1])
             for n, entry in re.findall(r'^(?:- )?\[(\d+)\] (.+)$', paper, re.M)}
    assert len(years) == 66
    for number, table in TABLES.items():
        for row in table.rows:
            digits = re.search(r' \[\D*(\d+)\D*\]\D*$', ' ' + read[number][row.method][0] if row.method[0] != '[' else '')
            if row.reference: assert int(digits[1]) == row.reference and row.year == years[row.reference], (number, row)
            elif digits: assert f'[{digits[1]}]' in row.doubt, (number, row)
            elif '[' in read[number][row.method][0] or not read[number][row.method][0].isascii():
                assert row.doubt or row.method in ('3 x 3', '5 x 5', '7 x 7', 'l2 heatmap regression'), (number, row)
    assert {r.reference for t in TABLES.values() for r in t.rows if r.reference} == set(YEARS)


@pytest.mark.parametrize('number, headers', [('10', ['NME', 'AUC', 'FR']), ('13', ['NME', 'FR'])])
def test_columns_are_in_the_order_of_the_text(paper, number, headers):
    block = text_blocks(paper)[int(number) - 1]
    assert all(h in cell for h, cell in zip(headers, block[0][1:])) and [c.metric for c in TABLES[number].columns] == headers


def test_columns_are_what_the_catalogue_scores():
    "Where the catalogue has a column's dataset: its landmarks, subsets, counts, and a normaliser that its landmarks have."
    seen = set()
    for c in (c for t in TABLES.values() for c in t.columns):
        assert (c.cutoff is None) == (c.metric == 'NME')
        entry = CATALOGUE.get(c.dataset)
        if entry is None or entry.scheme is None: continue
        seen.add(c.dataset)
        if c.points != 49: assert entry.scheme.points == c.points
        split = entry.split(c.subset or entry.test)
        assert c.faces is None or split.count == c.faces
        if c.normaliser == 'ic': assert entry.scheme.eyes
    assert {'wflw', '300w', '300w-private'} <= seen


def test_totals_that_cannot_be():
    "Full of 300W within the rounding of its parts, except in the three rows that carry a note."
    odd = [row.method for row in TABLES['12'].rows
           if abs((554 * row.values[0] + 135 * row.values[1]) / 689 - row.values[2]) > 0.01 + 1e-9]
    assert odd == ['CPM+SRB', 'LAB (w/B)', 'Ours'] == [row.method for row in TABLES['12'].rows if 'weighted' in row.note]
    assert '2.91' in TABLES['12'].rows[-1].note and round((554 * 2.61 + 135 * 4.13) / 689, 2) == 2.91


def test_tables_for():
    numbers = lambda name: [t.number for t in tables_for(name)]
    assert numbers('wflw') == ['2', '4a', '10'] and numbers('300w') == ['4b', '12'] and numbers('300w-private') == ['1', '3', '7']
    assert numbers('cofw') == ['5', '13'] and numbers('aflw') == ['6', '11'] and numbers('300vw-c') == ['8', '9']
    assert numbers('cofw68') == numbers('menpo') == ['7'] and numbers('synthetic') == []
    assert sorted(t for name in TESTS for t in numbers(name)) == sorted([*TABLES, '7', '7'])
    with pytest.raises(ValueError, match="unknown dataset 'wlfw'; known: wflw"): tables_for('wlfw')


@pytest.mark.parametrize('fault, message', [
    (lambda: find_table('14'), r"unknown table '14'; known: 1, 4b, 4a"),
    (lambda: TABLES['5'].value('Wing', 'NME'), "unknown column of table 5 'NME'"),
    (lambda: TABLES['5'].value('wing', 'NME_ic %'), "unknown method of table 5 'wing'; known: Wing"),
    (lambda: column('NME_ic@8', 'wflw'), 'expected such as'),
    (lambda: column('AUC_ic', 'wflw'), 'expected such as'),
    (lambda: column('NME_ic', '300w', 'chalenge'), "unknown subset of 300w 'chalenge'; known: challenge"),
    (lambda: column('NME_ic', 'wfl'), "unknown dataset 'wfl'; known: wflw")])
def test_unknown_names(fault, message):
    with pytest.raises(ValueError, match=message): fault()


# Beside the paper

def test_beside_fills_what_agrees():
    view = beside('10', results(), 'run', trained='wflw')
    assert view.text.index[-1] == 'run (local)' and len(view.text) == len(TABLES['10'].rows) + 1
    assert view.values.iloc[-1].tolist() == pytest.approx([4.0, 0.6314, 2.0])                # AUC as a fraction, as table 10 prints it
    assert view.text.iloc[-1].tolist() == ['4.00', '0.631', '2.00'] and view.footnotes == ()
    assert view.text.iloc[6].tolist() == ['4.77', '-', '-'] and np.isnan(view.values.iloc[6, 1])


@pytest.mark.parametrize('table, frame, dataset, columns, reason', [
    ('10', results('box@7'), None, [1, 2], 'AUC_ic@10 is not among the results, which have AUC_box@7'),
    ('10', results('ic@8'), None, [1, 2], 'FR_ic@10 is not among the results, which have FR_ic@8'),
    ('10', results().assign(subset='largepose'), None, [0, 1, 2], "no 'local' on subset 'test', only on 'largepose'"),
    ('10', results().assign(faces=1966), None, [0, 1, 2], '1966 faces were scored; wflw test has 2500'),
    ('10', results().assign(**{'NME_ic %': np.nan}), None, [0], 'NME_ic is nan'),
    ('10', results().drop(columns='NME_ic %'), None, [0], 'NME_ic is not among the results, which have NME_box, NME_diag'),
    ('4b', results(), None, [0, 1, 2], "results on 300w have no 'local' on subset 'common', only on 'test'"),
    ('4b', results(), None, [0, 1, 2], '2500 faces were scored; 300w test has 689'),
    ('11', results('given@7', ('full', 4386, 'local', 3., 2., 1.4, 70., 1.)), None, [1, 3],
     'AUC_box@7 is not among the results, which have AUC_given@7'),
    ('7', results('box@7', ('test', 6000, 'local', 3., 2., 1.5, 70., 1.)), 'menpo', [0, 1, 2, 3, 4, 5],
     '6000 faces were scored; menpo test has 6679'),
    ('7', results('box@7', ('private', 600, 'local', 3., 2., 1.5, 70., 1.)), '300w-private', [1, 2, 4, 5], 'no results on cofw68 were given')])
def test_beside_refuses_what_does_not(table, frame, dataset, columns, reason):
    view = beside(table, frame, dataset=dataset, trained=dataset or find_table(table).dataset)
    last = len(view.text) - 1
    assert [j for j in range(view.text.shape[1]) if view.text.iloc[last, j] == ''] == columns
    assert view.values.iloc[last, columns].isna().all() and not view.best.iloc[last, columns].any()
    assert any(reason in note for note in view.footnotes)
    assert all(view.marks[last, j] for j in columns) and {i for i, j in view.marks if j >= 0} == {last}


def test_inner_points_are_not_all_points():
    "Table 8 scores 49 points: rows on all 68 go into table 9 and not there; a column 'points' tells rows apart."
    frame = results('ic@8', ('C', 1000, 'local', 5., 3., 2., 60., 1.))
    eight, nine = beside('8', frame, trained='300vw-c'), beside('9', frame, trained='300vw-a')
    assert eight.text.iloc[-1, 0] == '' and eight.footnotes == ('the column scores 49 landmarks, results on 300vw-c 68',)
    assert nine.text.iloc[-1, 0] == '5.00' and nine.footnotes == ('1000 faces were scored; how many the paper tested is not stated',)
    both = pd.concat([frame, frame.assign(**{'AUC_ic@8 %': 61.5, 'NME_ic %': 4.})]).assign(points=[68, 49])
    assert beside('8', both).text.iloc[-1, 0] == '61.50' and beside('9', both).text.iloc[-1, 0] == '5.00'


def test_a_box_that_is_not_known_wins_nothing():
    "AFLW: our tight boxes are shown beside the paper's, with a footnote, and no mark."
    frame = results('box@7', ('full', 4386, 'local', 3., 1., 0.7, 90., 1.), ('frontal', 1314, 'local', 3., 1., 0.6, 90., 1.))
    view = beside('11', frame, trained='aflw')
    assert view.text.iloc[-1].tolist() == ['0.70', '0.60', '1.00', '90.0'] and not view.best.iloc[-1].any() and view.best.iloc[-2].all()
    assert len(view.footnotes) == 1 and 'which box the paper took is not known' in view.footnotes[0]


def test_real_columns_of_results_table():
    "The names that beside() looks for are those that results_table writes, with its subsets."
    faces = load_faces('synthetic', 'test', size=64, limit=5)[torch.arange(689) % 5]
    faces = dataclasses.replace(faces, subsets=[('common', 'full')] * 554 + [('challenge', 'full')] * 135)
    frame = results_table({'local': faces.points + 1, 'argmax': faces.points}, faces, find_dataset('300w'))
    view = beside('12', frame, 'run', trained='300w')
    assert list(view.text.index[-2:]) == ['run (local)', 'run (argmax)'] and view.footnotes[3:] == ()
    by_hand = frame[frame.decoder == 'local'].set_index('subset')['NME_ic %'][['common', 'challenge', 'full']]
    assert view.values.iloc[-2].tolist() == pytest.approx(by_hand.tolist()) and (view.text.iloc[-1] == '0.00').all()
    first = faces[torch.arange(600)]
    for found in (first, dataclasses.replace(first, subsets=[('indoor', 'private')] * 300 + [('outdoor', 'private')] * 300)):
        private = results_table({'local': found.points + 1}, found, find_dataset('300w-private'))
        assert beside('7', private, dataset='300w-private').text.iloc[-1].tolist().count('') == 4     # the whole is called test, or private


def test_extra_columns_and_decoders_do_no_harm():
    rows = [('test', 2500, d, 4. + i, 2., 1.4, 60., 2.) for i, d in enumerate(['local', 'dark', 'argmax'])]
    frame = results('ic@10', *rows, ('blur', 773, 'local', 9., 9., 9., 9., 9.))
    frame.insert(0, 'note', 'x'); frame['NME_pupil %'] = 1.
    view = beside('2', frame, trained='wflw')
    assert view.text.iloc[-3:, 0].tolist() == ['4.00', '5.00', '6.00']


@pytest.mark.parametrize('call, message', [
    (lambda: beside('7', results()), 'which dataset are the results of.*300w-private, menpo, cofw68'),
    (lambda: beside('10', results(), dataset='300w'), 'table 10 is about wflw, these are results on 300w'),
    (lambda: beside('10', results().drop(columns='faces')), 'results on wflw: no column faces among subset'),
    (lambda: beside('10', pd.concat([results(), results()])), "2 rows for subset 'test', decoder 'local'"),
    (lambda: beside('10', {'wflw': results()}, dataset='wflw'), 'a mapping names its datasets itself'),
    (lambda: save_tables('x', results()), 'which dataset')])
def test_beside_faults(call, message):
    with pytest.raises(ValueError, match=message): call()


# The best of a column

def best(view, j: int) -> list[str]: return view.text.index[view.best.iloc[:, j].to_numpy()].tolist()


def test_best_of_the_paper_alone():
    for table in TABLES.values():
        view = beside(table, {})
        assert view.text.shape == (len(table.rows), len(table.columns))
        for j, c in enumerate(table.columns):
            numbers = [row.values[j] for row in table.rows if row.comparable and row.values[j] is not None]
            want = (max if c.metric == 'AUC' else min)(numbers)
            assert [v for v, b in zip(view.values.iloc[:, j], view.best.iloc[:, j]) if b] == [want] * numbers.count(want)


def test_best_takes_part():
    better = results('ic@10', ('test', 2500, 'local', 3.5, 2., 1.4, 60., 1.549))
    view = beside('10', better, trained='wflw')
    assert best(view, 0) == ['ours (local)'] and best(view, 1) == ['Ours (paper)']
    assert best(view, 2) == ['Ours (paper)', 'ours (local)']                                   # a tie as printed
    other = beside('10', better, trained='synthetic')
    assert best(other, 0) == ['Ours (paper)'] and 'trained on synthetic, not as this table does' in other.footnotes[0]
    unknown = beside('10', better)
    assert best(unknown, 0) == ['ours (local)'] and 'trained on is not stated' in unknown.footnotes[0]


def test_rows_of_another_protocol_win_nothing():
    "A Table 13 row that is probably by pupils keeps out, even where its number is the smallest."
    assert [r.method for r in TABLES['13'].rows if r.comparable] == ['LAB (w/B)', 'HR-Net', 'Ours']
    view = beside('13', results('ic@10', ('test', 507, 'local', 3.02, 2., 1.4, 60., 0.)), trained='cofw')
    assert best(view, 0) == best(view, 1) == ['Ours (paper)', 'ours (local)']
    rows = tuple(dataclasses.replace(r, printed=('1.00', '0.0')) if r.method == 'Wing' else r for r in TABLES['13'].rows)
    assert best(beside(dataclasses.replace(TABLES['13'], rows=rows), {}), 0) == ['Ours (paper)']


# Three ways to print it

ODD = r'50% & a_b #1 {x} $y$ ~^ \z |q| <i> *w* `c` [5] "d"'


@pytest.fixture(scope='module')
def odd_views():
    frame = results().assign(decoder=ODD)
    return [beside('10', frame, ODD), *(beside(t, {}) for t in TABLES.values())]


def test_markdown_parses_back(odd_views):
    for view in odd_views:
        lines = [line for line in render(view, 'markdown').splitlines() if line.startswith('|')]
        rows = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
        plain = lambda cell: re.sub(r'\\(.)', r'\1', re.sub(r'<sup>[\d,]+</sup>$', '', re.sub(r'^\*\*(.*?)\*\*', r'\1', cell)))
        assert [plain(c) for c in rows[0]] == ['Method', *view.text.columns] and set(rows[1]) <= {':--', '--:'}
        assert [plain(row[0]) for row in rows[2:]] == list(view.text.index)
        assert [[plain(c) for c in row[1:]] for row in rows[2:]] == view.text.values.tolist()
        assert [[c.startswith('**') for c in row[1:]] for row in rows[2:]] == view.best.values.tolist()


class Cells(html.parser.HTMLParser):
    "Text of each cell of a table's rows, and which are bold; raises where tags do not nest."
    def __init__(self) -> None:
        super().__init__(); self.rows, self.open, self.bold = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == 'br': return
        self.open.append(tag)
        if tag == 'tr': self.rows.append([]); self.bold.append([])
        if tag in ('td', 'th'): self.rows[-1].append(''); self.bold[-1].append(False)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data):
        if not {'td', 'th'} & set(self.open) or ('sup' in self.open and 'td' in self.open): return
        self.rows[-1][-1] += data; self.bold[-1][-1] |= 'b' in self.open


def test_html_parses_back(odd_views):
    for view in odd_views:
        parsed = Cells(); parsed.feed(render(view)); parsed.close()
        assert parsed.open == [] and [row[0] for row in parsed.rows[1:]] == list(view.text.index)
        assert [row[1:] for row in parsed.rows[1:]] == view.text.values.tolist()
        assert [row[1:] for row in parsed.bold[1:]] == view.best.values.tolist()
    assert view._repr_html_() == render(view, 'html') and repr(view) == render(view, 'markdown')


def test_latex_is_balanced_and_escaped(odd_views):
    for view in odd_views:
        tex = render(view, 'latex')
        assert re.findall(r'\\(begin|end)\{(\w+)\}', tex) == [('begin', 'table'), ('begin', 'tabular'), ('end', 'tabular'), ('end', 'table')]
        bare = re.sub(r'\\[\\{}%&#_$]', '', tex)                                             # without escaped characters and line ends
        depth = np.cumsum([(c == '{') - (c == '}') for c in bare])
        assert depth.min() == 0 and depth[-1] == 0 and bare.count('$') % 2 == 0
        outside = re.sub(r'\$[^$]*\$', '', bare)
        assert not set(outside) & set('%#_^~|<>')
        body = tex[tex.index(r'\hline'):tex.index(r'\end{tabular}')]
        rows = [line for line in body.splitlines() if line.endswith(r' \\')]
        assert len(rows) == len(view.text) + 1
        assert {len(re.findall(r'(?<!\\)&', row)) for row in rows} == {len(view.table.columns)}
        assert [r'\textbf' in cell for row in rows[1:] for cell in re.split(r'(?<!\\)&', row)[1:]] == view.best.values.ravel().tolist()


def test_escapes_by_hand():
    assert escape_latex(r'a_b & 5% \ {x} [1]') == r'a\_b \& 5\% \textbackslash{} \{x\} {[}1{]}'


def test_footnotes_are_numbered_where_they_stand():
    view = beside('12', results('ic@10', ('common', 554, 'local', 2.5, 1., 1., 1., 1.)), 'run')
    markdown = render(view, 'markdown')
    assert len(view.footnotes) == 6
    for n, note in enumerate(view.footnotes, 1): assert f'\n<sup>{n}</sup> {note}' in markdown.replace('\\', ''), note
    assert re.search(r'\| run \(local\)<sup>4</sup> \| \*\*2\.50\*\* \| <sup>5</sup> \| <sup>6</sup> \|', markdown)
    assert TABLES['12'].protocol in markdown.replace('\\', '') and 'table 12 of the paper' in markdown


def test_render_faults():
    with pytest.raises(ValueError, match="unknown kind of table 'tex'; known: latex"): render(beside('1', {}), 'tex')
    with pytest.raises(TypeError, match='expected a View.*got DataFrame'): render(results(), 'html')


def test_saved_tables(tmp_path):
    written = save_tables(tmp_path / 'run', results(), 'wflw', 'run', 'wflw')
    assert [p.name for p in written] == [f'table_{n}.{kind}' for n in ('02', '04a', '10') for kind in ('md', 'tex')]
    assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == sorted(p.name for p in written)
    view = beside('10', results(), 'run', trained='wflw')
    assert written[4].read_text('utf-8') == render(view, 'markdown') and written[5].read_text('utf-8') == render(view, 'latex')
    assert save_tables(tmp_path / 'none', results(), 'synthetic') == [] and not (tmp_path / 'none').exists()
    both = {'300w-private': results('box@7', ('private', 600, 'local', 3., 2., 1.5, 70., 1.)),
            'cofw68': results('box@7', ('test', 507, 'local', 4., 2.4, 2., 65., 1.))}
    names = [p.name for p in save_tables(tmp_path / 'two', both)]
    assert names == [f'table_{n}.{kind}' for n in ('01', '03', '07') for kind in ('md', 'tex')]
    seven = beside('7', both, trained=None)
    assert seven.text.iloc[-1].tolist() == ['2.00', '', '2.40', '70.0', '', '65.0']
    assert (tmp_path / 'two' / 'table_07.md').read_text('utf-8') == render(seven, 'markdown')


# Figures 4 and 5

def test_best_gains_and_worst():
    ours, baseline = [3., 2., 5., 1., 6., 0.5], [4., 9., 3., np.nan, 6., 7.5]
    assert best_gains(torch.tensor(ours), torch.tensor(baseline), 10) == [1, 5, 0]    # 7 twice: in order; 4 gains 0, 2 loses, 3 is NaN
    assert best_gains(ours, baseline, 1) == [1]
    assert worst(torch.tensor(baseline), 3) == [1, 5, 4] and worst(baseline, 99) == [1, 5, 4, 0, 2]
    with pytest.raises(ValueError, match=r'got \(2,\) and \(3,\)'): best_gains([1., 2.], [1., 2., 3.], 1)
    with pytest.raises(ValueError, match='at least 1, got 0'): worst([1.], 0)
    with pytest.raises(ValueError, match=r'got \(1, 1\)'): worst([[1.]], 1)
