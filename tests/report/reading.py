"""A page as its reader has it: the words that show, and the scripts that run."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Reading(HTMLParser):
    """words: all text that shows, spaces collapsed; scripts: what stands in <script>; ids, and
    what refers to them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self._within = ""
        self._words: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(html)
        self.words = re.sub(r"\s+", " ", "".join(self._words))

    def handle_starttag(self, tag, attrs):
        self._within = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "aria-labelledby":
                self.references.append(value)

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] += data
        elif not self._within:
            self._words.append(data)
