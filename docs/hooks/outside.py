"""A MkDocs hook: what the pages link to outside docs/ becomes part of the site, so that links hold here and on a host.

A page `ds_configs/README.md` becomes `files/ds_configs/README.md`; a file such as a TOML becomes a page that shows it;
a folder becomes its README, or a list of its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = "files"
"""Folder of the site for what lies outside docs/."""
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^\s*(```|~~~)")
SHOWN_AS_THEY_ARE = {".png", ".svg", ".jpg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add everything that a page links to, and what that links to in turn, and pages of the navigation."""
    waiting = [Path("docs", file.src_uri) for file in files.documentation_pages()]
    waiting += [Path(page).relative_to(OUTSIDE) for page in _pages(config.nav) if Path(page).parts[0] == OUTSIDE]
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if path.parts[0] != "docs":
            files.append(_made(path, config))
        if path.suffix == ".md":
            _linked((ROOT / path).read_text(encoding="utf-8"), path, waiting.append)
        elif (ROOT / path).is_dir():
            waiting += _members(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = Path(page.file.src_uri)
    source = Path(*uri.parts[1:]) if uri.parts[0] == OUTSIDE else Path("docs", uri)
    return _linked(markdown, source, lambda path: None) if source.suffix == ".md" else markdown


def _linked(markdown: str, source: Path, found: Callable[[Path], Any]) -> str:
    """The page with its links to files of the project as they are in the site; `found` is told each of those files."""

    def change(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        if "://" in target or target.startswith(("mailto:", "/")):
            return match[0]
        path = _file(Path(os.path.normpath(source.parent / target)))
        if path is None:
            return match[0]  # MkDocs warns of it
        found(path)
        here = _uri(source).parent
        return f"{before}{os.path.relpath(_uri(path), here)}{anchor}{after}"

    inside = False
    lines = []
    for line in markdown.splitlines(keepends=True):
        fence = bool(FENCE.match(line))
        inside ^= fence
        lines.append(line if inside or fence else LINK.sub(change, line))
    return "".join(lines)


def _file(path: Path) -> Path | None:
    """What a link to `path`, relative to the project, leads to."""
    whole = ROOT / path
    if path.parts[:1] == ("..",) or not whole.exists():
        return None
    return path / "README.md" if (whole / "README.md").exists() else path


def _uri(path: Path) -> Path:
    """Where a file of the project is in the site."""
    if path.parts[0] == "docs":
        return Path(*path.parts[1:])
    as_it_is = path.suffix == ".md" or path.suffix in SHOWN_AS_THEY_ARE
    return Path(OUTSIDE, path if as_it_is else f"{path}.md")


def _made(path: Path, config: MkDocsConfig) -> File:
    uri, whole = _uri(path).as_posix(), ROOT / path
    if path.suffix == ".md" or path.suffix in SHOWN_AS_THEY_ARE:
        return File.generated(config, uri, abs_src_path=str(whole))
    if whole.is_dir():
        names = "\n".join(f"- [{member.name}]({member.name}.md)" for member in _members(path))
        moved = Path(path.name)  # a folder's page lies beside it
        return File.generated(config, uri, content=f"# {path}\n\n" + names.replace("](", f"]({moved}/") + "\n")
    text = whole.read_text(encoding="utf-8")
    return File.generated(config, uri, content=f"# {path}\n\n``````{_language(path)}\n{text}\n``````\n")


def _members(folder: Path) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).iterdir() if path.suffix in (".toml", ".py"))


def _language(path: Path) -> str:
    return {".py": "python", ".sh": "bash"}.get(path.suffix, path.suffix.removeprefix("."))


def _pages(nav: Any) -> list[str]:
    """Every page that mkdocs.yml's navigation names."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in _pages(child)]
