"""The documentation site: built strictly and offline, no page asks another host, and what it shows is as it says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from helpers_commands import ROOT

from nd import __version__
from nd.config.application import compose
from nd.tables.specs import load_spec

DOCS = ROOT / "docs"
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="needs the extra docs (pip install -e '.[docs]')",
)


class Requests(HTMLParser):
    """Collects what a page would load by itself from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note scripts, images, styles and frames of other hosts; links that a reader follows are none."""
        given = dict(attrs)
        loaded = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
        target = given.get(loaded.get(tag, ""), "") or ""
        if re.match(r"(https?:)?//", target) and not (tag == "link" and given.get("rel") == "canonical"):
            self.found.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    # Whatever the network is: a build that asks for anything fails.
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_mkdocs
def test_no_page_asks_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        assert requests.found == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@needs_mkdocs
def test_the_reference_is_made_of_the_code(site: Path) -> None:
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("compose", "execute", "read_run", "score_arrays", "Ridge", "FastL2LiR", "guide_pipeline"):
        assert re.search(rf'<h3 id="nd\.interface\.\w+\.{name}"', python), name
    assert "&gt;&gt;&gt; " in re.sub(r"<[^>]+>", "", python)  # examples are code
    fields = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", fields).split())
    assert "guidance.kappa 300000 guidance scale, &gt;= 0; 0 switches guidance off" in text
    assert "mapper.name=fastl2lir" in text
    assert "logger.project nd W&amp;B project; no part of a run's identity" in text
    assert (site / "notebooks" / "first_steps.html").is_file()
    assert (site / "experiments" / "scenes-guidance" / "index.html").is_file()
    assert (site / "experiments" / "scenes.png").stat().st_size == (ROOT / "experiments" / "scenes.png").stat().st_size
    assert "0.1.0" in (site / "changelog.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere_in_the_repository(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_spec_that_is_shown_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "guide" / "tables.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "shown.yaml"
    path.write_text(block, encoding="utf-8")
    spec = load_spec(str(path))
    assert [row.label for row in spec.rows][:2] == ["kappa 0.3, eta 0.2", "kappa 0.3, eta 0.8"]
    assert (len(spec.rows), spec.tolerance, spec.overrides) == (6, 0.02, ["method.repeats=2"])


def test_the_page_of_tables_lists_every_spec() -> None:
    text = (DOCS / "guide" / "tables.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(\.\./\.\./experiments/(\w+)\.yaml\)", text))
    assert listed == {path.stem for path in (ROOT / "experiments").glob("*.yaml")} - {"default"}  # no table of its own


def test_the_recipe_that_is_shown_is_one(tmp_path: Path) -> None:
    text = (DOCS / "tutorials" / "add_a_method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "vae_early.yaml").write_text(block, encoding="utf-8")
    cfg = compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=scenes", "table=", "method=vae_early"])
    assert (cfg.method.generator, cfg.decoding("z").roi, cfg.decoding("z").mapper.folds) == ("vae", "early", 5)


def test_the_results_page_and_the_readme_show_the_same_scores() -> None:
    shown = re.search(
        r"<!-- SCENES_TABLE -->\n(.*?)\n<!--", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert shown is not None
    assert shown[1] in (DOCS / "results.md").read_text(encoding="utf-8")
    expected = load_spec("demo").expected
    for label, scores in expected.items():
        (line,) = [line for line in shown[1].splitlines() if line.startswith(f"| {label}")]
        assert f" {scores['pixcorr']:.3f} [" in line


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"], cited["cff-version"]) == (__version__, "Apache-2.0", "1.2.0")
    assert all(reference["title"] and reference["authors"] for reference in cited["references"])
