"""Keep an answer inside its markers: what a judge reads as structure, no answer may write.

A judge's template sets each answer between markers. An answer that writes a marker itself could close its own
block and speak for the judge, and one that writes `[[10]]` could be quoted as the verdict. Both get a
zero-width space, which breaks the marker and leaves the text readable. Such answers are counted, as are those
that ask for a rating in words, which stay as they are: the judge must see them for what they are.
"""

import re
from dataclasses import dataclass
from functools import cache

BREAK = "\u200b"
LINE_ENDS = "\n\r\v\f\x85\u2028\u2029"
# The forms in which the templates in use mark structure.
_MARKER_FORMS = re.compile(
    r"\[The (?:Start|End) of [^\]\n]*\]|<\|[^|\n]{1,80}\|>|^### [^\n]*:$|^## [^\n]+$"
    r'|\[(?:User )?Question\]|\[Instruction\]|"model_identifier"',
    re.MULTILINE,
)
_VERDICT = re.compile(r"\[\[(?=\s*(?:\d+(?:\.\d+)?|[A-C])\s*\]\])")
_CHAT_TOKEN = re.compile(r"<(?=([|｜])\w[^|｜\n]{0,80}\1>)")
_DEMAND = re.compile(
    r"\b(?:rate|rating|score|grade|give|award)\b[^.\n]{0,60}\b(?:10|ten)\b"
    r"|\b(?:choose|select|prefer)\b[^.\n]{0,40}\b(?:model m|this (?:answer|response|output))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Guarded:
    """Hold an answer as the judge sees it.

    marked: it held a marker or a verdict, now broken. demands: it asks for a rating.
    """

    text: str
    marked: bool
    demands: bool


def markers_of(template: str) -> tuple[str, ...]:
    """Return the literal markers of a judge's template, the longest first."""
    return tuple(sorted(set(_MARKER_FORMS.findall(template)), key=len, reverse=True))


def guard(answer: str, markers: tuple[str, ...]) -> Guarded:
    """Return the answer with every marker, chat token and verdict broken, and whether there was one."""
    text = answer
    for marker in markers:
        text = _where_it_marks(marker).sub(rf"\1{BREAK}", text)
    text = _CHAT_TOKEN.sub("<" + BREAK, text)
    text = _VERDICT.sub("[" + BREAK + "[" + BREAK, text)
    return Guarded(text, marked=text != answer, demands=bool(_DEMAND.search(answer)))


@cache
def _where_it_marks(marker: str) -> re.Pattern[str]:
    """Match where a marker would be read as one; the first group ends where it is to be broken.

    A heading marks at the beginning of a line, of any level, and as whole words ("## Instructions" of a recipe is
    another one); a word in brackets marks alone on its line; what opens and closes an answer marks anywhere.
    """
    begin, end = rf"(?:\A|(?<=[{LINE_ENDS}]))[^\S{LINE_ENDS}]*", rf"[ \t:]*(?:[{LINE_ENDS}]|\Z)"
    if marker.startswith("#"):
        return re.compile(rf"({begin}#)(?=#*\s*{re.escape(marker.lstrip('# '))}(?!\w))")
    if re.fullmatch(r"\[[\w ]+\]", marker) and not marker.startswith("[The "):
        return re.compile(rf"({begin}\[)(?={re.escape(marker[1:])}{end})")
    return re.compile(rf"({re.escape(marker[0])})(?={re.escape(marker[1:])})")


def fill(template: str, values: dict[str, str]) -> str:
    """Fill {name} placeholders in one pass: a value that holds a placeholder of its own stays as it is."""
    return re.sub(
        r"\{(" + "|".join(map(re.escape, values)) + r")\}", lambda found: values[found[1]], template
    )
