"What is put below the paper's tables, by hand, and three ways to print it."

import dataclasses
import html.parser
import re

import numpy as np
import pandas as pd
import pytest
import torch

from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import find_dataset
from subpixel_nb.evaluation.evaluation import results_table
from subpixel_nb.evaluation.published import TABLES, find_table
from subpixel_nb.evaluation.tables import (
    compare_with_paper,
    escape_latex,
    render_table,
    save_tables,
)


def results(first: str = 'ic@10', *rows: tuple) -> pd.DataFrame:
    "Results in the columns of `results_table`: subset, faces, decoder, NME ic, box, diag, AUC, FR."
    return pd.DataFrame(
        rows or [('test', 2500, 'local', 4.0, 2.0, 1.4, 63.14, 2.0)],
        columns=[
            'subset',
            'faces',
            'decoder',
            'NME_ic %',
            'NME_box %',
            'NME_diag %',
            f'AUC_{first} %',
            f'FR_{first} %',
        ],
    )


# Below the paper's rows


def test_a_row_fills_what_agrees():
    view = compare_with_paper('10', results(), 'run', trained='wflw')
    assert view.text.index[-1] == 'run (local)' and len(view.text) == len(TABLES['10'].rows) + 1
    assert view.values.iloc[-1].tolist() == pytest.approx(
        [4.0, 0.6314, 2.0]
    )  # AUC as a fraction, as table 10 prints it
    assert view.text.iloc[-1].tolist() == ['4.00', '0.631', '2.00'] and view.footnotes == ()
    assert view.text.iloc[6].tolist() == ['4.77', '-', '-'] and np.isnan(view.values.iloc[6, 1])


@pytest.mark.parametrize(
    'table, frame, dataset, columns, reason',
    [
        ('10', results('box@7'), None, [1, 2], 'AUC_ic@10 is not among the results, which have AUC_box@7'),
        ('10', results('ic@8'), None, [1, 2], 'FR_ic@10 is not among the results, which have FR_ic@8'),
        (
            '10',
            results().assign(subset='largepose'),
            None,
            [0, 1, 2],
            "no 'local' on subset 'test', only on 'largepose'",
        ),
        ('10', results().assign(faces=1966), None, [0, 1, 2], '1966 faces were scored; wflw test has 2500'),
        ('10', results().assign(**{'NME_ic %': np.nan}), None, [0], 'NME_ic is nan'),
        (
            '10',
            results().drop(columns='NME_ic %'),
            None,
            [0],
            'NME_ic is not among the results, which have NME_box, NME_diag',
        ),
        ('4b', results(), None, [0, 1, 2], "results on 300w have no 'local' on subset 'common', only on 'test'"),
        ('4b', results(), None, [0, 1, 2], '2500 faces were scored; 300w test has 689'),
        (
            '11',
            results('given@7', ('full', 4386, 'local', 3.0, 2.0, 1.4, 70.0, 1.0)),
            None,
            [1, 3],
            'AUC_box@7 is not among the results, which have AUC_given@7',
        ),
        (
            '7',
            results('box@7', ('test', 6000, 'local', 3.0, 2.0, 1.5, 70.0, 1.0)),
            'menpo',
            [0, 1, 2, 3, 4, 5],
            '6000 faces were scored; menpo test has 6679',
        ),
        (
            '7',
            results('box@7', ('private', 600, 'local', 3.0, 2.0, 1.5, 70.0, 1.0)),
            '300w-private',
            [1, 2, 4, 5],
            'no results on cofw68 were given',
        ),
    ],
)
def test_a_row_leaves_empty_what_does_not_agree(table, frame, dataset, columns, reason):
    view = compare_with_paper(table, frame, dataset=dataset, trained=dataset or find_table(table).datasets[0])
    last = len(view.text) - 1
    assert [j for j in range(view.text.shape[1]) if view.text.iloc[last, j] == ''] == columns
    assert view.values.iloc[last, columns].isna().all() and not view.best.iloc[last, columns].any()
    assert any(reason in note for note in view.footnotes)
    assert all(view.marks[last, j] for j in columns) and {i for i, j in view.marks if j >= 0} == {last}


def test_inner_points_are_not_all_points():
    "Table 8 scores 49 points: rows on all 68 go into table 9 and not there; a column 'points' tells rows apart."
    frame = results('ic@8', ('C', 1000, 'local', 5.0, 3.0, 2.0, 60.0, 1.0))
    eight, nine = compare_with_paper('8', frame, trained='300vw-c'), compare_with_paper('9', frame, trained='300vw-a')
    assert eight.text.iloc[-1, 0] == '' and eight.footnotes == (
        'the column scores 49 landmarks, results on 300vw-c 68',
    )
    assert nine.text.iloc[-1, 0] == '5.00' and nine.footnotes == (
        '1000 faces were scored; how many the paper tested is not stated',
    )
    both = pd.concat([frame, frame.assign(**{'AUC_ic@8 %': 61.5, 'NME_ic %': 4.0})]).assign(points=[68, 49])
    assert (
        compare_with_paper('8', both).text.iloc[-1, 0] == '61.50'
        and compare_with_paper('9', both).text.iloc[-1, 0] == '5.00'
    )


def test_a_box_that_is_not_known_wins_nothing():
    "AFLW: our tight boxes are shown below the paper's, with a footnote, and no mark."
    frame = results(
        'box@7', ('full', 4386, 'local', 3.0, 1.0, 0.7, 90.0, 1.0), ('frontal', 1314, 'local', 3.0, 1.0, 0.6, 90.0, 1.0)
    )
    view = compare_with_paper('11', frame, trained='aflw')
    assert (
        view.text.iloc[-1].tolist() == ['0.70', '0.60', '1.00', '90.0']
        and not view.best.iloc[-1].any()
        and view.best.iloc[-2].all()
    )
    assert len(view.footnotes) == 1 and 'which box the paper took is not known' in view.footnotes[0]


def test_real_columns_of_results_table():
    "The names that compare_with_paper() looks for are those that results_table writes, with its subsets."
    faces = load_faces('synthetic', 'test', size=64, limit=5)[torch.arange(689) % 5]
    faces = dataclasses.replace(faces, subsets=[('common', 'full')] * 554 + [('challenge', 'full')] * 135)
    frame = results_table({'local': faces.points + 1, 'argmax': faces.points}, faces, find_dataset('300w'))
    view = compare_with_paper('12', frame, 'run', trained='300w')
    assert list(view.text.index[-2:]) == ['run (local)', 'run (argmax)'] and view.footnotes[3:] == ()
    by_hand = frame[frame.decoder == 'local'].set_index('subset')['NME_ic %'][['common', 'challenge', 'full']]
    assert view.values.iloc[-2].tolist() == pytest.approx(by_hand.tolist()) and (view.text.iloc[-1] == '0.00').all()
    first = faces[torch.arange(600)]
    for found in (
        first,
        dataclasses.replace(first, subsets=[('indoor', 'private')] * 300 + [('outdoor', 'private')] * 300),
    ):
        private = results_table({'local': found.points + 1}, found, find_dataset('300w-private'))
        assert (
            compare_with_paper('7', private, dataset='300w-private').text.iloc[-1].tolist().count('') == 4
        )  # the whole is called test, or private


def test_extra_columns_and_decoders_do_no_harm():
    rows = [('test', 2500, d, 4.0 + i, 2.0, 1.4, 60.0, 2.0) for i, d in enumerate(['local', 'dark', 'argmax'])]
    frame = results('ic@10', *rows, ('blur', 773, 'local', 9.0, 9.0, 9.0, 9.0, 9.0))
    frame.insert(0, 'note', 'x')
    frame['NME_pupil %'] = 1.0
    view = compare_with_paper('2', frame, trained='wflw')
    assert view.text.iloc[-3:, 0].tolist() == ['4.00', '5.00', '6.00']


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: compare_with_paper('7', results()), 'which dataset are the results of.*300w-private, menpo, cofw68'),
        (
            lambda: compare_with_paper('10', results(), dataset='300w'),
            'table 10 is about wflw, these are results on 300w',
        ),
        (
            lambda: compare_with_paper('10', results().drop(columns='faces')),
            'results on wflw: no column faces among subset',
        ),
        (
            lambda: compare_with_paper('10', pd.concat([results(), results()])),
            "2 rows for subset 'test', decoder 'local'",
        ),
        (lambda: compare_with_paper('10', {'wflw': results()}, dataset='wflw'), 'a mapping names its datasets itself'),
        (lambda: save_tables('x', results()), 'which dataset'),
    ],
)
def test_compare_faults(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The best of a column


def best(view, j: int) -> list[str]:
    return view.text.index[view.best.iloc[:, j].to_numpy()].tolist()


def test_best_of_the_paper_alone():
    for table in TABLES.values():
        view = compare_with_paper(table, {})
        assert view.text.shape == (len(table.rows), len(table.columns))
        for j, c in enumerate(table.columns):
            numbers = [row.values[j] for row in table.rows if row.comparable and row.values[j] is not None]
            want = (max if c.metric == 'AUC' else min)(numbers)
            assert [v for v, b in zip(view.values.iloc[:, j], view.best.iloc[:, j]) if b] == [want] * numbers.count(
                want
            )


def test_best_takes_part():
    better = results('ic@10', ('test', 2500, 'local', 3.5, 2.0, 1.4, 60.0, 1.549))
    view = compare_with_paper('10', better, trained='wflw')
    assert best(view, 0) == ['ours (local)'] and best(view, 1) == ['Ours (paper)']
    assert best(view, 2) == ['Ours (paper)', 'ours (local)']  # a tie as printed
    other = compare_with_paper('10', better, trained='synthetic')
    assert best(other, 0) == ['Ours (paper)'] and 'trained on synthetic, not as this table does' in other.footnotes[0]
    unknown = compare_with_paper('10', better)
    assert best(unknown, 0) == ['ours (local)'] and 'trained on is not stated' in unknown.footnotes[0]


def test_rows_of_another_protocol_win_nothing():
    "A Table 13 row that is probably by pupils keeps out, even where its number is the smallest."
    assert [r.method for r in TABLES['13'].rows if r.comparable] == ['LAB (w/B)', 'HR-Net', 'Ours']
    view = compare_with_paper('13', results('ic@10', ('test', 507, 'local', 3.02, 2.0, 1.4, 60.0, 0.0)), trained='cofw')
    assert best(view, 0) == best(view, 1) == ['Ours (paper)', 'ours (local)']
    rows = tuple(
        dataclasses.replace(r, printed=('1.00', '0.0')) if r.method == 'Wing' else r for r in TABLES['13'].rows
    )
    assert best(compare_with_paper(dataclasses.replace(TABLES['13'], rows=rows), {}), 0) == ['Ours (paper)']


# Three ways to print it

ODD = r'50% & a_b #1 {x} $y$ ~^ \z |q| <i> *w* `c` [5] "d"'


@pytest.fixture(scope='module')
def odd_views():
    frame = results().assign(decoder=ODD)
    return [compare_with_paper('10', frame, ODD), *(compare_with_paper(t, {}) for t in TABLES.values())]


def plain(cell: str) -> str:
    "A Markdown cell without bold, footnotes and escapes."
    cell = re.sub(r'<sup>[\d,]+</sup>$', '', re.sub(r'^\*\*(.*?)\*\*', r'\1', cell))
    return re.sub(r'\\(.)', r'\1', cell)


def test_markdown_parses_back(odd_views):
    for view in odd_views:
        lines = [line for line in render_table(view, 'markdown').splitlines() if line.startswith('|')]
        rows = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
        assert [plain(c) for c in rows[0]] == ['Method', *view.text.columns] and set(rows[1]) <= {':--', '--:'}
        assert [plain(row[0]) for row in rows[2:]] == list(view.text.index)
        assert [[plain(c) for c in row[1:]] for row in rows[2:]] == view.text.values.tolist()
        assert [[c.startswith('**') for c in row[1:]] for row in rows[2:]] == view.best.values.tolist()


class Cells(html.parser.HTMLParser):
    "Text of each cell of a table's rows, and which are bold; raises where tags do not nest."

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.open, self.bold = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == 'br':
            return
        self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
            self.bold.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
            self.bold[-1].append(False)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {'td', 'th'} & set(self.open) or ('sup' in self.open and 'td' in self.open):
            return
        self.rows[-1][-1] += data
        self.bold[-1][-1] |= 'b' in self.open


def test_html_parses_back(odd_views):
    for view in odd_views:
        parsed = Cells()
        parsed.feed(render_table(view))
        parsed.close()
        assert parsed.open == [] and [row[0] for row in parsed.rows[1:]] == list(view.text.index)
        assert [row[1:] for row in parsed.rows[1:]] == view.text.values.tolist()
        assert [row[1:] for row in parsed.bold[1:]] == view.best.values.tolist()
    assert view._repr_html_() == render_table(view, 'html') and repr(view) == render_table(view, 'markdown')


def test_latex_is_balanced_and_escaped(odd_views):
    for view in odd_views:
        tex = render_table(view, 'latex')
        assert re.findall(r'\\(begin|end)\{(\w+)\}', tex) == [
            ('begin', 'table'),
            ('begin', 'tabular'),
            ('end', 'tabular'),
            ('end', 'table'),
        ]
        bare = re.sub(r'\\[\\{}%&#_$]', '', tex)  # without escaped characters and line ends
        depth = np.cumsum([(c == '{') - (c == '}') for c in bare])
        assert depth.min() == 0 and depth[-1] == 0 and bare.count('$') % 2 == 0
        outside = re.sub(r'\$[^$]*\$', '', bare)
        assert not set(outside) & set('%#_^~|<>')
        body = tex[tex.index(r'\hline') : tex.index(r'\end{tabular}')]
        rows = [line for line in body.splitlines() if line.endswith(r' \\')]
        assert len(rows) == len(view.text) + 1
        assert {len(re.findall(r'(?<!\\)&', row)) for row in rows} == {len(view.table.columns)}
        assert [
            r'\textbf' in cell for row in rows[1:] for cell in re.split(r'(?<!\\)&', row)[1:]
        ] == view.best.values.ravel().tolist()


def test_escapes_by_hand():
    assert escape_latex(r'a_b & 5% \ {x} [1]') == r'a\_b \& 5\% \textbackslash{} \{x\} {[}1{]}'


def test_footnotes_are_numbered_where_they_stand():
    view = compare_with_paper('12', results('ic@10', ('common', 554, 'local', 2.5, 1.0, 1.0, 1.0, 1.0)), 'run')
    markdown = render_table(view, 'markdown')
    assert len(view.footnotes) == 6
    for n, note in enumerate(view.footnotes, 1):
        assert f'\n<sup>{n}</sup> {note}' in markdown.replace('\\', ''), note
    assert re.search(r'\| run \(local\)<sup>4</sup> \| \*\*2\.50\*\* \| <sup>5</sup> \| <sup>6</sup> \|', markdown)
    assert TABLES['12'].protocol in markdown.replace('\\', '') and 'table 12 of the paper' in markdown


def test_render_faults():
    with pytest.raises(ValueError, match="unknown kind of table 'tex'; known: latex"):
        render_table(compare_with_paper('1', {}), 'tex')
    with pytest.raises(TypeError, match='expected a ComparedTable.*got DataFrame'):
        render_table(results(), 'html')


def test_saved_tables(tmp_path):
    written = save_tables(tmp_path / 'run', results(), 'wflw', 'run', 'wflw')
    assert [p.name for p in written] == [f'table_{n}.{kind}' for n in ('02', '04a', '10') for kind in ('md', 'tex')]
    assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == sorted(p.name for p in written)
    view = compare_with_paper('10', results(), 'run', trained='wflw')
    assert written[4].read_text('utf-8') == render_table(view, 'markdown') and written[5].read_text(
        'utf-8'
    ) == render_table(view, 'latex')
    assert save_tables(tmp_path / 'none', results(), 'synthetic') == [] and not (tmp_path / 'none').exists()
    both = {
        '300w-private': results('box@7', ('private', 600, 'local', 3.0, 2.0, 1.5, 70.0, 1.0)),
        'cofw68': results('box@7', ('test', 507, 'local', 4.0, 2.4, 2.0, 65.0, 1.0)),
    }
    names = [p.name for p in save_tables(tmp_path / 'two', both)]
    assert names == [f'table_{n}.{kind}' for n in ('01', '03', '07') for kind in ('md', 'tex')]
    seven = compare_with_paper('7', both, trained=None)
    assert seven.text.iloc[-1].tolist() == ['2.00', '', '2.40', '70.0', '', '65.0']
    assert (tmp_path / 'two' / 'table_07.md').read_text('utf-8') == render_table(seven, 'markdown')
