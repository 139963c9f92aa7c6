"""A verdict for machines: JSON, Markdown, GitHub annotations, JUnit."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from headprune.errors import HeadpruneError
from headprune.gate import Verdict
from headprune.runtime.targets import append_text

# GitHub shows 10 annotations of a kind per step and drops the rest without a word.
_ANNOTATIONS = 10
_TITLE = "headprune check"
_NO_ANSWER = "it can't be told"
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def headline(verdict: Verdict) -> str:
    """Return the verdict in a few words, and which limits failed."""
    noise = " (the difference is within noise)" if verdict.within_noise else ""
    failed = ", ".join(finding.name for finding in verdict.findings if not finding.passed)
    return (f"failed: {failed}" if failed else "passed") + noise


def to_text(verdict: Verdict) -> str:
    """Return a line per limit."""
    lines = [
        f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name}: {finding.message}\n"
        for finding in verdict.findings
    ]
    return f"{_TITLE}: {headline(verdict)}\n" + "".join(lines)


def to_markdown(verdict: Verdict) -> str:
    """Return a table for a pull request."""
    lines = [f"### {_TITLE}: {headline(verdict)}\n", "| | limit | measured |", "|---|---|---|"]
    for finding in verdict.findings:
        message = finding.message.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {'✅' if finding.passed else '❌'} | {finding.name} | {message} |")
    return "\n".join(lines) + "\n"


def to_github(verdict: Verdict) -> str:
    """Return workflow commands, failures first; the Markdown table is added to the step summary where there is one."""
    _add_to_step_summary(to_markdown(verdict))
    findings = sorted(verdict.findings, key=lambda finding: finding.passed)[:_ANNOTATIONS]
    return "".join(
        _annotation(finding.name, finding.message)
        if finding.passed
        else _annotation(f"{finding.name} failed", finding.message, level="error")
        for finding in findings
    )


def to_junit(verdict: Verdict) -> str:
    """Return one test case per limit."""
    suite = _suite(len(verdict.findings), failures=sum(not f.passed for f in verdict.findings))
    for finding in verdict.findings:
        case, message = _case(suite, finding.name), _xml_text(finding.message)
        if finding.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            ElementTree.SubElement(case, "failure", message=message)
    return _document(suite)


def error_to_markdown(error: HeadpruneError) -> str:
    """Return what kept the check from an answer, for a pull request."""
    return f"### {_TITLE}: {_NO_ANSWER}\n\n```text\n{_text(error)}\n```\n"


def error_to_github(error: HeadpruneError) -> str:
    """Return an annotation of what kept the check from an answer; it is added to the step summary, too."""
    _add_to_step_summary(error_to_markdown(error))
    return _annotation(_NO_ANSWER, _text(error), level="error")


def error_to_junit(error: HeadpruneError) -> str:
    """Return one test case that could not be run."""
    suite = _suite(1, errors=1)
    reason = ElementTree.SubElement(_case(suite, "check"), "error", message=_xml_text(error.what))
    reason.text = _xml_text(_text(error))
    return _document(suite)


FORMATS: dict[str, Callable[[Verdict], str]] = {
    "text": to_text,
    "json": Verdict.to_json,
    "markdown": to_markdown,
    "github": to_github,
    "junit": to_junit,
}

ERROR_FORMATS: dict[str, Callable[[HeadpruneError], str]] = {
    "markdown": error_to_markdown,
    "github": error_to_github,
    "junit": error_to_junit,
}
"""How an exit 2 is reported where a machine reads stdout; the others report nothing there."""


def _add_to_step_summary(text: str) -> None:
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        append_text(Path(summary), text)


def _annotation(title: str, message: str, *, level: str = "notice") -> str:
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{level} title={_TITLE}%3A {title}::{escaped}\n"


def _text(error: HeadpruneError) -> str:
    return str(error).removeprefix("error: ")


def _suite(tests: int, *, failures: int = 0, errors: int = 0) -> ElementTree.Element:
    counts: dict[str, Any] = {"tests": str(tests), "failures": str(failures), "errors": str(errors)}
    return ElementTree.Element("testsuite", name=_TITLE, **counts)


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname="headprune.check", name=_xml_text(name)
    )


def _document(suite: ElementTree.Element) -> str:
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode", xml_declaration=False)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _xml_text(text: str) -> str:
    """Return the text with a replacement for every character that XML 1.0 can't hold, not even as a reference."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
