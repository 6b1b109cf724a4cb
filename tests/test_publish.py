"""Publishing: what stands is gathered with its command and commits, and goes between its marks in the pages."""

from __future__ import annotations

import re
import runpy
import shutil

import pytest

from lab.report.exhibit import publish, refresh
from report_fixtures import build, grid_runs
from sgdpo.places import ROOT


def test_publishing_gathers_what_stands_with_its_command(tmp_path):
    grid_runs(tmp_path)
    build("table1", tmp_path)
    build("ratio_grid", tmp_path)
    build("figure3", tmp_path)
    names = {path.name for path in publish(tmp_path)}
    pictures = {f"{name}{form}" for name in ("ratio_grid", "figure3") for form in (".json", ".png", ".pdf")}
    tables = {f"{name}{form}" for name in ("table1", "figure3-claim") for form in (".md", ".csv", ".json")}
    assert names == {*pictures, *tables, "RESULTS.md"}
    text = (tmp_path / "published" / "RESULTS.md").read_text()
    for part in (
        "`make table1 SEEDS=2`",
        "### Table 1",
        "](ratio_grid.png)",
        "tiny Llama: held.",
        "CPU cores",
        "All runs are of one commit",
    ):
        assert part in text
    assert text.index("make table1") < text.index("make ratio_grid") < text.index("make figure3")


def test_results_of_several_commits_are_refused_or_said(tmp_path):
    grid_runs(tmp_path)
    build("table1", tmp_path)
    for path in tmp_path.glob("table1/*/record.json"):
        path.write_text(path.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    build("ratio_grid", tmp_path)
    mixture = r"012345678 \(table1\); fedcba987 \(ratio_grid\)"
    with pytest.raises(ValueError, match=f"rest on several commits: {mixture}"):
        publish(tmp_path)
    assert not (tmp_path / "published").exists()
    publish(tmp_path, mixed=True)
    assert re.search(f"of several commits: {mixture}", (tmp_path / "published" / "RESULTS.md").read_text())


def test_what_was_published_before_stays_as_it_was_and_is_named(tmp_path):
    grid_runs(tmp_path)
    build("table1", tmp_path)
    build("ratio_grid", tmp_path)
    publish(tmp_path)
    results = tmp_path / "published" / "RESULTS.md"
    first = results.read_text()
    (tmp_path / "table1" / "table1.json").unlink()
    build("figure3", tmp_path)
    publish(tmp_path)
    text = results.read_text()
    assert "Published before, with their commits below them: table1." in text
    headings = re.findall(r"^## (.*)", text, re.M)
    assert headings == ["table1", "ratio_grid", "figure3"]
    kept, between = (each[each.index("## table1") : each.index("## ratio_grid")] for each in (first, text))
    assert kept == between
    assert text.count("### Table 1") == 1
    publish(tmp_path)
    assert results.read_text() == text
    results.write_text("## table1\n\n![an end that an editor trimmed](a.png)\n")
    publish(tmp_path)
    assert "(a.png)\n\n## ratio_grid\n" in results.read_text()


def test_a_published_table_goes_between_its_marks_in_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "a\n<!-- table3:begin -->\nold\n<!-- table3:end -->\n<!-- demo:begin -->\nkept\n<!-- demo:end -->\nb\n"
    )
    (tmp_path / "table3.md").write_text("new\n")
    refresh(readme, tmp_path)
    assert readme.read_text() == (
        "a\n<!-- table3:begin -->\nnew\n<!-- table3:end -->\n<!-- demo:begin -->\nkept\n<!-- demo:end -->\nb\n"
    )


def test_a_published_picture_goes_between_its_marks_too(tmp_path):
    page = tmp_path / "PAGE.md"
    page.write_text("<!-- walk:begin -->\n–\n<!-- walk:end -->\n")
    (tmp_path / "walk.json").write_text('{"picture": "walk.svg", "title": "A walk"}')
    refresh(page, tmp_path)
    assert page.read_text() == "<!-- walk:begin -->\n![A walk](walk.png)\n<!-- walk:end -->\n"
    elsewhere = tmp_path / "docs" / "PAGE.md"
    elsewhere.parent.mkdir()
    shutil.copy(page, elsewhere)
    refresh(elsewhere, tmp_path)
    assert "](../walk.png)" in elsewhere.read_text()


def test_publishing_nothing_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="make paper"):
        publish(tmp_path)
    with pytest.raises(ValueError, match="make paper SCALE=smollm2"):
        publish(tmp_path, "-smollm2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.json").write_text("5")
    (tmp_path / "mine" / "note.md").write_text("")
    with pytest.raises(ValueError, match="no table or figure stands"):
        publish(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scale", "huge"), "--scale huge: it is one of tiny, smollm2, paper"),
        (("--readme", "READM.md"), "--readme READM.md: there is no such file"),
    ],
)
def test_publishing_to_nowhere_is_one_error(options, said, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "publish.py"))["main"]
    with pytest.raises(SystemExit):
        main([*options, "--outputs", str(tmp_path)])
    assert said in capsys.readouterr().err
