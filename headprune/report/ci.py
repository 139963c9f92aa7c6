"""A verdict for machines: JSON, Markdown, GitHub annotations, JUnit."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from headprune.errors import HeadpruneError
from headprune.gate import Finding, Verdict
from headprune.runtime.targets import append_text

# GitHub shows 10 annotations of a kind per step and drops the rest without a word.
_ANNOTATIONS = 10
_UNTOLD = "it can't be told"
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_json(verdict: Verdict) -> str:
    """The whole verdict, one document."""
    return verdict.to_json()


def to_markdown(verdict: Verdict) -> str:
    """A table for a pull request."""
    mark = {True: "✅", False: "❌"}
    rows = "\n".join(
        f"| {mark[finding.passed]} | {finding.name} | {_cell(finding.message)} |"
        for finding in verdict.findings
    )
    return f"### headprune check: {headline(verdict)}\n\n| | limit | measured |\n|---|---|---|\n{rows}\n"


def to_github(verdict: Verdict) -> str:
    """Workflow commands, failures first; the Markdown table goes to the step summary where there is one."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        append_text(Path(summary), to_markdown(verdict))
    ordered = sorted(verdict.findings, key=lambda finding: finding.passed)
    lines = [_annotation(finding) for finding in ordered[:_ANNOTATIONS]]
    return "\n".join(lines) + "\n"


def to_junit(verdict: Verdict) -> str:
    """One test case per limit."""
    failed = sum(not finding.passed for finding in verdict.findings)
    suite = ElementTree.Element(
        "testsuite",
        name="headprune check",
        tests=str(len(verdict.findings)),
        failures=str(failed),
        errors="0",
    )
    for finding in verdict.findings:
        name, message = _xml_text(finding.name), _xml_text(finding.message)
        case = ElementTree.SubElement(suite, "testcase", classname="headprune.check", name=name)
        if finding.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            ElementTree.SubElement(case, "failure", message=message)
    return _document(suite)


def _document(suite: ElementTree.Element) -> str:
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode", xml_declaration=False)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def to_text(verdict: Verdict) -> str:
    """A line per limit."""
    lines = [
        f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name}: {finding.message}"
        for finding in verdict.findings
    ]
    return "\n".join([f"headprune check: {headline(verdict)}", *lines]) + "\n"


def headline(verdict: Verdict) -> str:
    """Say it in a few words, and which limits failed."""
    noise = " (the difference is within noise)" if verdict.within_noise else ""
    broken = ", ".join(finding.name for finding in verdict.findings if not finding.passed)
    return (f"failed: {broken}" if broken else "passed") + noise


def error_to_github(error: HeadpruneError) -> str:
    """Return an annotation of what kept the check from an answer; the step summary says it, too."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        append_text(Path(summary), error_to_markdown(error))
    return f"::error title=headprune check%3A {_UNTOLD}::{_escaped(_spoken(error))}\n"


def error_to_markdown(error: HeadpruneError) -> str:
    """The same for a pull request."""
    return f"### headprune check: {_UNTOLD}\n\n```text\n{_spoken(error)}\n```\n"


def error_to_junit(error: HeadpruneError) -> str:
    """One test case that could not be run."""
    suite = ElementTree.Element(
        "testsuite", name="headprune check", tests="1", failures="0", errors="1"
    )
    case = ElementTree.SubElement(suite, "testcase", classname="headprune.check", name="check")
    told = ElementTree.SubElement(case, "error", message=_xml_text(error.what))
    told.text = _xml_text(_spoken(error))
    return _document(suite)


ERROR_FORMATS: dict[str, Callable[[HeadpruneError], str]] = {
    "markdown": error_to_markdown,
    "github": error_to_github,
    "junit": error_to_junit,
}
"""How an exit 2 is told where a machine reads stdout; the others say nothing there."""

FORMATS: dict[str, Callable[[Verdict], str]] = {
    "text": to_text,
    "json": to_json,
    "markdown": to_markdown,
    "github": to_github,
    "junit": to_junit,
}


def _xml_text(text: str) -> str:
    """Return the text with a replacement for every character that XML 1.0 has no way to say, not even as a reference."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _annotation(finding: Finding) -> str:
    level = "notice" if finding.passed else "error"
    said = "" if finding.passed else " failed"
    return f"::{level} title=headprune check%3A {finding.name}{said}::{_escaped(finding.message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _spoken(error: HeadpruneError) -> str:
    return str(error).removeprefix("error: ")
