"""Any text comes through unchanged, or is refused with a message: command line, YAML, run folders, tables, pages.

Texts are random ones over many alphabets and the signs that some reader on the way takes for its own.
"""

from __future__ import annotations

import csv
import io
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_results import N_IMAGES, config, fake_scores
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt

from nd import read_run
from nd.config.application import compose
from nd.config.check import build
from nd.config.overrides import read
from nd.errors import UserError
from nd.files import read_json
from nd.runs.folder import RunFolder
from nd.tables import formats
from nd.tables.csv_export import csv_files
from nd.tables.gallery import Gallery
from nd.tables.line_chart import Line, LineChart
from nd.tables.published import Published
from nd.tables.report import page
from nd.tables.specs import Column, Entry, Row, TableSpec, load_spec
from nd.tables.table import Table, collect

ROOT = Path(__file__).parent.parent
ALPHABETS = [
    "aZ09 _-./", ":=,;'\"\\#%&*!?@~^|<>()[]{}$`+", "éßøÅñ", "日本語脳", "שלוםمرحبا", "e\u0301a\u0308\u0323",
    "\U0001f9e0\U0001f469\u200d\U0001f52c", "\u200b\u200e\ufeff\xa0", "Ωπ±↑∞",
]  # fmt: skip
NO_TEXT = ["null", "true", "no", "~", "007", "1e3", "1_1", "0x1F", "12:30:00", "2024-01-01", "nan", "-.inf"]  # to YAML
WORDS = [
    *NO_TEXT, "<b>x</b>", "&amp;", "a_b", "*x*", "[a](b)", "1. a", "- a", "# a", "a #", "\\n", "$x_$", "\\frac", "%s",
    "a\\", "|", "a\\|b", "=1+1", "<!--", "]]>", "it's", '"x"', "str(3)", "glob(*)", "interval(0,1)", "a: b", "a #b",
    "!x", "&x", "*x", "@x", "'", "http://x.y/?a=1&b=2", "~~~",
]  # fmt: skip
BROKEN = ["a\ud800", "\udc80", "a\x00b", "a\nb", "a\rb", "a\x1b[0m", "a\u2028b", "\x85"]  # no line of text
FREE = ["logger.project", "paths.data", "paths.cache", "paths.runs", "paths.results"]  # fields that hold any text
NO_IMAGES = Gallery([], [], [], [], [], "")


def texts(n: int, seed: int) -> list[str]:
    """Every word, and random texts, no two of them the same but for white space around them."""
    draw = random.Random(seed)
    made = {word.strip(): word for word in WORDS}
    while len(made) < n:
        text = "".join(draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(1, 12)))
        made.setdefault(text.strip(), text)
    made.pop("", None)
    return list(made.values())


def batched(items: list[str], n: int) -> list[list[str]]:
    return [items[i : i + n] for i in range(0, len(items), n)]


def is_syntax(text: str) -> bool:
    """Whether a text means something else where fields are set, as it does in Hydra: quoted, a reference, my home."""
    return text.strip()[:1] in ("'", '"') or "${" in text or text == "???" or text.startswith("~/")


def test_the_command_line_keeps_texts_or_names_their_key() -> None:
    kept: list[str] = []
    for text in texts(120, seed=0):
        reading = read([f"logger.project={text}"], [ROOT / "conf"])
        if reading.problems or reading.sweeps:
            assert any("logger.project" in problem for problem in reading.problems), text
        elif reading.given[0].values[0].startswith(("[", "{")):  # a list or a mapping
            with pytest.raises(UserError, match=r"logger\.project: .* wanted text"):
                compose([f"logger.project={text}"])
        elif not is_syntax(text):
            kept.append(text)
    assert len(kept) > 70
    for some in batched([*kept, " a", "a ", "  b  "], len(FREE)):
        cfg = compose([f"{key}={text}" for key, text in zip(FREE, some, strict=False)])
        assert values(cfg)[: len(some)] == some
        assert read(cfg.overrides, [ROOT / "conf"]).single() == cfg.overrides, "a row of a table reads them again"


def jobs_of(words: list[str]) -> list[list[str]]:
    """What Hydra's sweeper hands to the jobs of a sweep."""
    told = [one.text for one in read(words, [ROOT / "conf"], multirun=True).given]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(told), None)
    return jobs


def test_jobs_of_a_sweep_keep_texts() -> None:
    """Those that all jobs share, as one job alone has them; and those that are swept, however they are listed."""
    some = [text for text in texts(120, seed=3) if not is_syntax(text) and not read_alone(text)]
    assert len(some) > 70
    assert any(":" in text for text in some)
    for shared in batched(some, len(FREE)):
        words = [f"{key}={text}" for key, text in zip(FREE, shared, strict=False)]
        for job in jobs_of([*words, "seed=1,2"]):
            assert values(compose(job))[: len(shared)] == shared
    for listed in ("package://scenes,b://c", "choice(package://scenes,b://c)"):
        weights = [compose(job).backbone.weights for job in jobs_of([f"backbone.weights={listed}"])]
        assert weights == ["package://scenes", "b://c"]


def read_alone(text: str) -> bool:
    """Whether a text is a list, a mapping, a sweep or a mistake."""
    reading = read([f"logger.project={text}"], [ROOT / "conf"])
    return bool(reading.problems) or reading.sweeps or reading.given[0].values[0].startswith(("[", "{"))


def values(cfg: object) -> list[str]:
    return [getattr(getattr(cfg, key.partition(".")[0]), key.partition(".")[2]) for key in FREE]


def test_files_of_conf_keep_texts(tmp_path: Path) -> None:
    """Written by a program; and as a person writes them, without quotes, where YAML reads a word and not text."""
    (tmp_path / "experiment").mkdir()
    dumped = [
        yaml.safe_dump(text).removesuffix("...\n").strip() for text in texts(80, seed=1)[::3] if not is_syntax(text)
    ]
    for number, some in enumerate(batched([*NO_TEXT, *dumped], len(FREE))):
        groups: dict[str, str] = {}
        for key, written in zip(FREE, some, strict=False):
            group, _, name = key.partition(".")
            groups[group] = groups.get(group, f"{group}:\n") + f"  {name}: {written}\n"
        content = "# @package _global_\n" + "".join(groups.values())
        (tmp_path / "experiment" / f"t{number}.yaml").write_text(content, encoding="utf-8")
        cfg = compose([f"hydra.searchpath=[file://{tmp_path}]", f"experiment=t{number}"])
        wanted = [text if text in NO_TEXT else yaml.safe_load(text) for text in some]
        assert values(cfg)[: len(some)] == wanted, content


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_line_of_text_is_refused_by_name(text: str, tmp_path: Path) -> None:
    _, checked = build({"logger": {"project": text}})
    assert re.match(r"logger\.project: the text holds U\+[0-9A-F]{4} at character \d, which", checked.problems[0])
    spec = {"title": "T", "experiment": "scenes", "subjects": ["subj01"], "columns": [{"metric": "pixcorr"}]}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec | {"rows": [{"label": text}]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\[0\]: label holds U\+|cannot be read as a table spec"):
        load_spec(str(path))


def test_half_a_reference_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"logger\.project: .* holds no whole \$\{\.\.\.\}"):
        compose(["logger.project=a${x"])
    assert compose([r"logger.project=a\${x}"]).logger.project == "a${x}"


def test_run_folders_keep_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.runs.manifest.versions", dict)  # asks every package
    names = texts(70, seed=2)[::2]
    cfg, folders = config(tmp_path), set()
    for text, other in pairwise(names):
        cfg.subject.name, cfg.logger.project, cfg.overrides = text, other, [f"logger.project={other}", "seed=1"]
        folder = RunFolder.open(cfg, "train")
        with folder.writing(cfg, {text: other}):
            pass
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", folder.path.name), "any file system keeps it, any shell takes it"
        assert read_run(folder.path).config == cfg
        record = read_json(folder.path / "manifest.json")
        assert (record["config"]["logger"]["project"], record["inputs"]) == (other, {text: other})
        assert (folder.path / "overrides.txt").read_text(encoding="utf-8").split("\n")[:-1] == cfg.overrides
        folders.add(folder.path)
    assert len(folders) == len(names) - 1, "each subject has a run of its own"


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return texts(90, seed=3)


@pytest.fixture(scope="module")
def table(labels: list[str], tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Two finished runs, shown under many labels, with notes, a title, a column and published rows of the same."""
    root, text = tmp_path_factory.mktemp("text"), cycle(reversed(labels))
    runs = [config(root), config(root)]
    runs[1].guidance.kappa = 0.0
    for cfg in runs:
        fake_scores(cfg, {"pixcorr": np.arange(N_IMAGES) / 10})
    rows = [Row(label=label, note=next(text)) for label in labels]
    found = {"protocol": "p", "scores": {"pixcorr": 0.5}}
    published = [Published(label=label, source=next(text), note=next(text), **found) for label in labels]  # type: ignore[arg-type]
    spec = TableSpec(
        name="t", folder=root, title="<T> & *U* |", experiment="scenes", subjects=["subj01"], rows=rows,
        columns=[Column(metric="pixcorr", name="a|b_c *d* $x_$")], published=published,
    )  # fmt: skip
    return collect(spec, [Entry(row, "subj01", cfg) for row, cfg in zip(rows, cycle(runs), strict=False)], "nd run")


def test_specs_keep_texts(labels: list[str], tmp_path: Path) -> None:
    spec = {"title": "007", "experiment": "scenes", "subjects": ["1_1"], "columns": [{"metric": "x", "name": "1e3"}]}
    rows = [{"label": label, "note": label, "overrides": [label]} for label in labels]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec | {"rows": rows}, allow_unicode=True), encoding="utf-8")
    found = load_spec(str(path))
    assert [(row.label, row.note, row.overrides) for row in found.rows] == [(x, x, [x]) for x in labels]
    path.write_text(
        "title: 007\nexperiment: scenes\nsubjects: [1_1, 12.10]\ncolumns: [{metric: x, name: 1e3}]\n"
        "rows: [{label: null}, {label: 2024-01-01, overrides: [seed=1, 007]}]\nimages: [2024-01-01]\n"
        "expected: {null: {x: 0.5}}\n",
        encoding="utf-8",
    )
    found = load_spec(str(path))
    assert (found.title, found.subjects, found.columns[0].name) == ("007", ["1_1", "12.10"], "1e3")
    assert [(row.label, row.overrides) for row in found.rows] == [("null", []), ("2024-01-01", ["seed=1", "007"])]
    assert (found.images, found.expected) == (["2024-01-01"], {"null": {"x": 0.5}})


def test_csv_keeps_texts(table: Table, labels: list[str], tmp_path: Path) -> None:
    """But for a quote before what spreadsheets would compute."""
    cells = [cell(label) for label in labels]
    assert cells != labels
    formats.write_table(table, tmp_path)
    for suffix, column in ((".csv", "row"), ("-published.csv", "method")):
        with open(tmp_path / f"t{suffix}", newline="", encoding="utf-8") as handle:
            assert [line[column] for line in csv.DictReader(handle)] == cells
    lines = list(csv.DictReader(io.StringIO(csv_files(table)["-published.csv"])))
    assert [(line["source"], line["note"]) for line in lines] == [
        (cell(r.source), cell(r.note)) for r in table.spec.published
    ]


def cell(text: str) -> str:
    """What a spreadsheet reads as text."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def of_blocks(table: Table) -> list[str]:
    return [note for block in formats.blocks(table) for note in block.notes]


def test_markdown_keeps_texts(table: Table, labels: list[str]) -> None:
    shown = PlainText(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(formats.markdown(table)))
    first = [cells[0] for cells in shown.rows]
    wanted = [label.strip() for label in labels]
    assert first[1 : len(labels) + 1] == wanted
    assert [f"{label} (published)".strip() for label in labels] == [one for one in first if one.endswith("(published)")]
    assert shown.rows[0][2] == "a|b_c *d* $x_$ ↑"
    assert shown.of("h3") == [table.title]
    assert shown.of("li") == [note.strip() for note in (*of_blocks(table), *table.notes)]


def test_pages_keep_texts(table: Table, labels: list[str]) -> None:
    shown = PlainText(page(table, NO_IMAGES, "nd run 'a <b> & c'"))
    first = [cells[0] for cells in shown.rows]
    assert [label for label in labels if label not in first] == []
    assert shown.of("li") == [*table.notes, *of_blocks(table)]
    assert shown.of("title") == [table.spec.title]
    assert shown.of("code") == ["nd run 'a <b> & c'"]
    assert "a|b_c *d* $x_$\xa0↑" in shown.of("th")


def test_charts_draw_texts_as_they_are(labels: list[str]) -> None:
    chart = LineChart(labels[0], labels[1], labels[2], [Line(label, [(0, 0.0), (1, 1.0)]) for label in labels])
    root = ElementTree.fromstring(str(chart.svg))
    assert [line.findtext("title") for line in root.findall("polyline")] == labels
    assert root.get("aria-label") == chart.said


def test_latex_keeps_texts(table: Table, labels: list[str]) -> None:
    lines = formats.latex(table).splitlines()
    cells = [line.partition(" & ")[0].strip() for line in lines if line.endswith(r"\\") and " & " in line]
    wanted = [label.strip() for label in labels]
    assert [plain(cell) for cell in cells if not cell.endswith("(published)")][1 : len(labels) + 1] == wanted
    depth = sum(1 if one == "{" else -1 for one in re.findall(r"(?<!\\)[{}]", "\n".join(lines)))
    assert depth == 0, "as many groups open as close"


def plain(tex: str) -> str:
    """What TeX sets for a text without commands but those of signs; anything else that TeX reads fails."""
    signs = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
        "textbar": "|",
    }  # fmt: skip
    math = {r"$\uparrow$": "↑", r"$\downarrow$": "↓", r"$\pm$": "±"}
    token = re.compile(r"\$\\\w+\$|\\([a-z]+)\{\}|\\([&%$#_{}])|([^\\&%$#_{}~^<>|])")
    assert token.sub("", tex) == "", tex
    return token.sub(lambda m: math.get(m[0]) or signs.get(m[1] or "") or m[2] or m[3], tex)


class PlainText(HTMLParser):
    """The texts of a page: of every element by tag, and the cells of every row of its tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(page)
        self.close()

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.found if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h3", "li", "title", "code", "td", "th"):
            self.open.append((tag, []))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        for _, parts in self.open:
            parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            text = "".join(self.open.pop()[1])
            self.found.append((tag, text))
            if tag in ("td", "th"):
                self.rows[-1].append(text)
