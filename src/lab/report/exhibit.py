"""An exhibit is a table or a figure: one function and one YAML in conf/report that names it by its dotted path.

    def ranking(runs: Sequence[RunView], *, metric: str) -> Table: ...     # or a Picture, or a list of both

The YAML's own keys say what is trained and judged for it (`Exhibit`); every other key is a keyword of the function.
Nothing lists exhibits a second time: `make`, the page and the published results read the folder. What stands is
gathered into one tracked folder by `publish`, with the command and the commit that made it.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import psutil
import yaml
from omegaconf import OmegaConf

from lab.report.cells import with_evaluation
from lab.report.entries import commit_text, origin
from sgdpo.contract import Kind, binding_errors, load, settings_of
from sgdpo.drawing.style import Picture
from sgdpo.drawing.table import Table
from sgdpo.places import CONF
from sgdpo.runs.provenance import git_state
from sgdpo.runs.records import read_runs, require_runs
from sgdpo.store import read_json, write_whole
from sgdpo.values import NAME, Keys, Range, value_error

FOLDER = CONF / "report"
PUBLISHED = "published"  # the folder of the tracked copies
PUBLISHED_FORMS = (".md", ".csv", ".json", ".png", ".pdf")
BLOCK = re.compile(r"<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->", re.S)
SECTION = re.compile(r"^## ([\w-]+)\n(.*?)(?=^## [\w-]+\n|\Z)", re.S | re.M)  # of RESULTS.md: an exhibit's
Count = Annotated[int, Range("[1, 1000]")]
TUNED = Keys(
    {"key": str, "seeds": list[int], "judged": str, "metric": str},
    needed=("key", "seeds", "judged", "metric"),
)
# The JSON of a work, and the table or what a picture's JSON says.
Work = tuple[Path, Table | dict[str, Any]]


@dataclass(frozen=True)
class Exhibit:
    """Hold what conf/report/<name>.yaml says beside the function and its settings.

    before: commands that come before the sweep, with {outputs} and {experiment} in them. sweep: the file of conf/sweep
    that trains its runs; None: nothing is trained. experiment: whose runs it shows; None: all there are. models: all of
    the scale's, the first, or the sweep's own. seeds: how many, unless more are asked for. judged: by the scale's
    benchmark (true), or the one named. tuned: {key, seeds, judged, metric}: the sweep's values of the key are tried on
    these seeds and judged by a benchmark of their own; the exhibit's runs are each method's best. twice: the answers of
    one run are judged twice. evaluation: whose results are read, <benchmark>-<judge>, where the runs have several.
    n_jobs: forced. beside: exhibits of the same runs that are made with it. order: its place
    in `make paper`; None: made only by name.
    """

    name: str
    config: Mapping[str, Any]
    caption: str = ""
    sweep: str | None = None
    experiment: Annotated[str, NAME] | None = None
    models: Literal["all", "first", "own"] = "all"
    seeds: Count = 1
    before: tuple[str, ...] = ()
    judged: bool | str = False
    tuned: Annotated[dict[str, Any], TUNED] | None = None
    twice: bool = False
    evaluation: str | None = None
    n_jobs: Count | None = None
    beside: tuple[str, ...] = ()
    order: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(KIND, self.config)


OWN = tuple(f.name for f in fields(Exhibit) if f.name not in ("name", "config"))
KIND = Kind("report", positional=("runs",), reserved=OWN)


def exhibit_names() -> list[str]:
    """List the tables and figures that there are, those of `make paper` first and in its order."""
    found = {path.stem: _yaml(path) for path in FOLDER.glob("*.yaml")}

    def place(name: str) -> tuple[bool, float, str]:
        order = found[name].get("order")
        numbered = isinstance(order, int | float)  # another order is named where its exhibit is asked for
        return not numbered, order if numbered else 0, name

    return sorted((name for name, config in found.items() if "function" in config), key=place)


def in_order(names: Iterable[str | None]) -> list[str | None]:
    """Sort names as `make paper` makes them, those of no exhibit last."""
    order = exhibit_names()
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), str(name)))


def find_exhibit(name: str, changes: Sequence[str] = ()) -> Exhibit:
    """Read an exhibit; changes: "key=value" for its function. Raise ValueError with all that is wrong."""
    if name not in exhibit_names():
        raise ValueError(f"unknown table or figure {name!r}; there are: {', '.join(exhibit_names())}")
    config: dict[str, Any] = {"name": name, **_yaml(FOLDER / f"{name}.yaml")}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key in {*OWN, "name", "function"} - {"evaluation"}:
            there = ["evaluation", *sorted(settings_of(KIND, config))]
            raise ValueError(f"{change!r} is no setting of {name}: give key=value, of {there}")
        config[key] = _typed(change, value)
    own = {key: config[key] for key in OWN if key in config}
    errors = [*binding_errors(KIND, config), *_own_errors(name, own)]
    if errors:
        raise ValueError("; ".join(errors))
    return Exhibit(name, config, **own)


def _typed(change: str, value: str) -> Any:
    """Read a value as the command line of a run does: 1e-1 is a number."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)["value"]
    except yaml.YAMLError:
        raise ValueError(f"{change!r}: what stands behind the = is no value; quote it as YAML does") from None


def _own_errors(name: str, own: Mapping[str, Any]) -> list[str]:
    where, hints = f"conf/report/{name}.yaml", get_type_hints(Exhibit, include_extras=True)
    problems = {key: value_error(value, hints[key]) for key, value in own.items()}
    if errors := [f"{where}: {key}{problem}" for key, problem in problems.items() if problem]:
        return errors
    if own.get("sweep") and not (CONF / "sweep" / f"{own['sweep']}.yaml").is_file():
        errors.append(f"{where}: there is no conf/sweep/{own['sweep']}.yaml")
    if own.get("sweep") and not own.get("experiment"):
        errors.append(f"{where}: a sweep needs an experiment to train into")
    errors += [f"{where}: beside names {other!r}, which is no exhibit" for other in own.get("beside") or ()
               if other not in exhibit_names()]  # fmt: skip
    return errors


def make(
    exhibit: Exhibit,
    outputs: Path,
    experiment: str | None = None,
    into: Path | None = None,
    made_by: str = "",
) -> tuple[list[Path], str]:
    """Make the exhibit's tables and pictures; return their files and what to print.

    made_by: the command that published results name, where it is more than the exhibit, its scale and its seeds.
    Raises ValueError if there are no runs, or they do not belong together.
    """
    experiment = experiment or exhibit.experiment
    command = f"make {exhibit.name}"
    runs = require_runs(outputs, experiment, command) if experiment else read_runs(outputs)
    runs = with_evaluation(runs, exhibit.evaluation) if exhibit.evaluation else runs
    function = exhibit.config["function"]
    made = load(KIND, exhibit.config)(runs, **exhibit.settings)
    works = list(made) if isinstance(made, list | tuple) else [made]
    if wrong := [type(work).__name__ for work in works if not isinstance(work, Table | Picture)]:
        raise ValueError(f"{function} gave {', '.join(wrong)}, not Tables and Pictures")
    names = [f"{exhibit.name}{work.name}" if work.name[:1] in ("", "-") else work.name for work in works]
    if len(set(names)) < len(names):
        raise ValueError(f"{function} gave two works of one name: {', '.join(names)}")
    from_where = {"exhibit": exhibit.name, "commits": [commit_text(git_state())]}
    from_where |= (origin(runs) if experiment else {}) | ({"command": made_by} if made_by else {})
    paths, shown = [], []
    for name, work in zip(names, works, strict=True):
        title = work.title or exhibit.caption or exhibit.name
        whole = replace(work, name=name, title=title, origin={**from_where, **work.origin})
        written = whole.write(into or outputs / exhibit.name)
        paths += written
        shown.append(whole.console() if isinstance(whole, Table) else "\n".join(map(str, written[:3])))
    return paths, "\n\n".join(shown)


def standing(outputs: Path) -> tuple[list[Work], list[str]]:
    """Read what stands under `outputs`: (JSON path, a table or what a picture's JSON says), and what is damaged.

    In the order of `make paper`; published copies are left out.
    """
    works, damaged = [], []
    for path in sorted(outputs.glob("*/*.json")):
        drawn = path.with_suffix(".md").is_file() or path.with_suffix(".svg").is_file()
        if path.parent.name == PUBLISHED or not drawn:
            continue
        try:
            found = read_json(path, advice="make it again")
            # Other JSON may stand there too.
            if isinstance(found, dict) and found.keys() & {"picture", "header"}:
                works.append((path, found if "picture" in found else Table.read(path)))
        except ValueError as error:
            damaged.append(str(error))
    places = in_order({whose(work).get("exhibit") for _, work in works})
    return sorted(works, key=lambda work: (places.index(whose(work[1]).get("exhibit")), work[0])), damaged


def whose(work: Table | Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the origin of a table or of what a picture's JSON says: exhibit, seeds, commits."""
    return work.origin if isinstance(work, Table) else work.get("origin") or {}


def publish(outputs: Path, suffix: str = "", *, mixed: bool = False) -> list[Path]:
    """Copy what stands under <outputs>/<exhibit><suffix>/ to <outputs>/published/ and write RESULTS.md beside it.

    What was published before and does not stand now stays published, and RESULTS.md says so. suffix: "-smollm2" or
    "-paper" for another scale. mixed: results of several commits are published all the same, and RESULTS.md says so.
    Raises ValueError if nothing stands yet, if something is damaged, or for a mixture.
    """
    works, damaged = standing(outputs)
    named = [
        (path, work) for path, work in works if path.parent.name == f"{whose(work).get('exhibit')}{suffix}"
    ]
    if damaged or not named:
        scale = f" SCALE={suffix.removeprefix('-')}" if suffix else ""
        nothing = f"no table or figure stands under {outputs} yet. Make them: make paper{scale}"
        raise ValueError("; ".join(damaged) or nothing)
    mixture = _mixture(named)
    if mixture and not mixed:
        raise ValueError(f"these results rest on several commits: {mixture}. Make them again, or say --mixed")
    folder = outputs / PUBLISHED
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for path, _ in named:
        files = [path.with_suffix(form) for form in PUBLISHED_FORMS if path.with_suffix(form).is_file()]
        copied += [Path(shutil.copy(file, folder / published_name(file, suffix))) for file in files]
    results = folder / f"RESULTS{suffix}.md"
    before = dict(SECTION.findall(results.read_text("utf-8"))) if results.is_file() else {}
    now = _sections(named, suffix)
    kept = [name for name in before if name not in now]
    sections = [f"## {name}\n{(before | now)[name].rstrip()}\n" for name in in_order(before | now)]
    write_whole(results, "\n".join([_head(suffix, mixture, kept), *sections]))
    return [*copied, results]


def _mixture(works: Sequence[Work]) -> str:
    commits: dict[str, dict[str, None]] = {}
    for _, work in works:
        for commit in whose(work).get("commits", ["unknown"]):
            commits.setdefault(commit, {})[whose(work)["exhibit"]] = None
    named = [f"{commit} ({', '.join(exhibits)})" for commit, exhibits in commits.items()]
    return "; ".join(named) if len(named) > 1 else ""


def refresh(page: Path, published: Path) -> None:
    """Put each published table or picture into a page, between `<!-- name:begin -->` and `<!-- name:end -->`.

    A block whose table is not published stays as it is: no number in it was ever typed.
    """

    def fresh(block: re.Match[str]) -> str:
        table, picture = published / f"{block[1]}.md", published / f"{block[1]}.json"
        text = table.read_text("utf-8") if table.is_file() else block[2]
        if not table.is_file() and picture.is_file():
            place = Path(os.path.relpath(picture.with_suffix(".png"), page.parent)).as_posix()
            text = f"![{read_json(picture)['title']}]({place})\n"
        return f"<!-- {block[1]}:begin -->\n{text}<!-- {block[1]}:end -->"

    write_whole(page, BLOCK.sub(fresh, page.read_text("utf-8")))


def published_name(path: Path, suffix: str) -> str:
    """Name a file among the published ones: another scale's do not replace the tiny one's."""
    return f"{path.stem}{suffix}{path.suffix}"


def _head(suffix: str, mixture: str, kept: Sequence[str]) -> str:
    """Head the page; one without a suffix holds what runs on a laptop, tiny models and SmolLM2."""
    memory = psutil.virtual_memory().total / 2**30
    runs = "What was gathered now is" if kept else "All runs are"
    runs += f" of several commits: {mixture}." if mixture else " of one commit, below each table."
    if kept:
        runs += f" Published before, with their commits below them: {', '.join(kept)}."
    return (
        f"# Results{suffix and f': {suffix[1:]} scale'}\n\n"
        f"Gathered by `make publish` at commit {commit_text(git_state())} on a machine with {psutil.cpu_count()} CPU "
        f"cores and {memory:.0f} GiB of memory. {runs} Numbers come from records only.\n"
    )


def _sections(works: Sequence[Work], suffix: str) -> dict[str, str]:
    """Give what RESULTS.md says of each exhibit."""
    scale = f" SCALE={suffix.removeprefix('-')}" if suffix else ""
    exhibits: dict[str, list[Work]] = {}
    for path, work in works:
        exhibits.setdefault(whose(work)["exhibit"], []).append((path, work))
    said = {}
    for name, own in exhibits.items():
        seeds = max(len(whose(work).get("seeds", [])) for _, work in own)
        command = f"make {name}{scale}{f' SEEDS={seeds}' if seeds > 1 else ''}"
        command = next((whose(work)["command"] for _, work in own if "command" in whose(work)), command)
        said[name] = "\n".join(["", f"`{command}`", "", *(_shown(*work, suffix) for work in own), ""])
    return said


def _shown(path: Path, work: Table | Mapping[str, Any], suffix: str) -> str:
    if isinstance(work, Table):
        return work.markdown()
    return f"![{work['title']}]({published_name(path.with_suffix('.png'), suffix)})\n"


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"conf/report/{path.name} is not YAML: {error}") from None
    return found if isinstance(found, dict) else {}
