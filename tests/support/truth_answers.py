"""Judges the answers of `/status`: each finding, what to do about it, and what leads them."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.truth_claims import Moment, judge

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Are we losing anything?", "Is it late?", "Why?"]
WORST = ["bad", "warn", "ok"]
_SETTING = re.compile(r"\b([a-z_]+)\.([a-z_]+)\b")


def judge_answers(moment: Moment, status: Json) -> Iterator[tuple[str, str, str]]:
    """Yield where, what was said, and what is wrong with it."""
    answers = status["answers"]
    if [each["question"] for each in answers] != QUESTIONS:
        yield "status", str([each["question"] for each in answers]), "other questions"
    for answer in answers:
        findings = answer["findings"] or [{**answer, "text": answer["answer"]}]
        for finding in findings:
            sentence = f"{finding['text']}: {finding['detail']}"
            for wrong in judge(moment, sentence):
                yield answer["question"], sentence, wrong
            for wrong in _advice(moment, finding):
                yield answer["question"], f"{sentence} -> {finding['hint']}", wrong
        first = findings[0]
        lead = (answer["answer"], answer["level"], answer["hint"], answer["runbook"])
        if lead != (first["text"], first["level"], first["hint"], first["runbook"]):
            yield answer["question"], str(lead), "the first finding says something else"
        levels = [WORST.index(each["level"]) for each in findings]
        if levels != sorted(levels):
            yield answer["question"], str(levels), "the worst is not the first"


def _advice(moment: Moment, finding: Json) -> Iterator[str]:
    hint, runbook = finding["hint"], finding["runbook"]
    if finding["level"] != "ok" and hint is None and "stopping" not in finding["detail"]:
        # The next question says why it is late.
        known = r"Yes, by |.* is getting its backlog|The sidecar is st|Events are being rejected"
        if not re.match(known, finding["text"]):
            yield "it does not say what to do"
    yield from places(f"{hint} ({runbook})" if runbook else f"{hint}")
    if hint and "curl" in hint:
        words = shlex.split(hint.partition("curl ")[2])
        body = json.loads(words[words.index("-d") + 1])
        if body["event_type"] not in {"start", "end"} or not words[0].endswith("/v1/spans"):
            yield "it would not send a span"
    if hint and "sidecar replay" in hint:
        # The file is looked at every 5 s.
        before = Moment(moment.books, moment.t - 6.0, moment.wall)
        if not (moment.letters() or before.letters()):
            yield "there is nothing to replay"


def places(hint: str) -> Iterator[str]:
    """What is wrong with the settings and the parts of the docs that a hint names."""
    for section, key in _SETTING.findall(hint):
        if section in _schema() and key not in _schema()[section]:
            yield f"there is no setting {section}.{key}"
    for page, anchor in re.findall(r"(docs/[\w.-]+\.md)#([\w-]+)", hint):
        if anchor not in _anchors(page):
            yield f"{page} has no {anchor}"


@cache
def _schema() -> dict[str, set[str]]:
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    sections = {}
    for name, section in schema["properties"].items():
        if "$ref" in section:
            section = schema["$defs"][section["$ref"].rpartition("/")[2]]  # noqa: PLW2901
        sections[name] = set(section.get("properties", {}))
    return sections


@cache
def _anchors(page: str) -> set[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
