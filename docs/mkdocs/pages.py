"""The little of Markdown that the site's hooks and the tests of the pages have to understand."""

import re
from collections.abc import Callable, Iterator, Sequence

_FENCE = re.compile(r"^(?P<indent> *)```.*?^(?P=indent)``` *$\n?", re.M | re.S)
_BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)\s]+")


def map_prose(markdown: str, change: Callable[[str], str]) -> str:
    """The text with everything outside of fenced code blocks changed."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def map_links(markdown: str, change: Callable[[str], str]) -> str:
    """The text with the targets of its links and pictures changed, save those with a scheme such as https."""
    return map_prose(markdown, lambda text: _LINK.sub(lambda match: change(match[0]), text))


def links(markdown: str) -> list[str]:
    """Targets of the links and pictures, save those with a scheme."""
    return _LINK.findall(_FENCE.sub("", markdown))


def python_blocks(markdown: str) -> Iterator[tuple[int, str, str]]:
    """(line of the first statement, code, why it is not run or "") of every block of Python, in order."""
    for match in _BLOCK.finditer(markdown):
        yield markdown.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"] or ""


def anchors(markdown: str) -> set[str]:
    """What GitHub calls the headings in links to them."""
    titles = re.findall(r"^#+ +(.*?) *$", _FENCE.sub("", markdown), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def list_arguments(docstring: str, arguments: Sequence[str]) -> str:
    """A docstring whose lines that begin with arguments and a colon are the items of a list."""
    if not arguments:
        return docstring
    one = "|".join(map(re.escape, arguments))
    item = re.compile(rf"((?:{one})(?:, (?:{one}))*): ")
    lines: list[str] = []
    for line in docstring.split("\n"):
        found = item.match(line)
        if found and lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
            lines.append("")  # a list begins after an empty line
        lines.append(f"- `{found[1]}`: {line[found.end() :]}" if found else line)
    return "\n".join(lines)
