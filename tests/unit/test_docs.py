# SPDX-License-Identifier: Apache-2.0
"""The documentation has everything, and leads to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import container

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: container\.(\w+)$", text, re.MULTILINE))
    plain = {name for name in container.__all__ if name.isupper() or name.startswith("__")}
    assert set(container.__all__) - plain == documented - {"aio", "oci"}
    assert [name for name in plain if name not in text] == []


def test_the_front_page_leads_to_every_page() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"```{toctree}\n(?::.*\n)*\n(.*?)```", text, re.DOTALL)
    assert set(listed.split()) == {page.stem for page in PAGES} - {"index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (DOCS / target.partition("#")[0]).is_file(), target
