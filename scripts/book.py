"""Two steps of building the guide with mdbook.

    book.py supports RENDERER, book.py     a preprocessor: links to files outside of docs/ become their names, because the
                                           book does not have these files
    book.py check FOLDER                   prints the links of a built book that lead nowhere; exit status 1 if there are any
"""

import json
import pathlib
import re
import sys
import urllib.parse

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]*)[^)]*\)")


def named(match):
    text, path = match.groups()
    return text if path.rstrip("/") in text else f"{text} (`{path}`)"


def rewrite(sections):
    for section in sections:
        chapter = section.get("Chapter") if isinstance(section, dict) else None
        if chapter:
            # A page in a folder of docs/ reaches the others by `../`.
            depth = len(pathlib.PurePath(chapter["path"] or "").parts) - 1
            outside = re.compile(OUTSIDE.pattern.replace(r"(?:\.\./)+", r"(?:\.\./){%d,}" % (depth + 1)))
            chapter["content"] = outside.sub(named, chapter["content"])
            rewrite(chapter["sub_items"])


def anchors(page, known={}):
    if page not in known:
        known[page] = set(re.findall(r'id="([^"]*)"', page.read_text(encoding="utf-8")))
    return known[page]


def broken(folder):
    for page in sorted(folder.rglob("*.html")):
        # Both repeat other pages, or are for readers without JavaScript.
        if page.name in ("print.html", "toc.html"):
            continue
        # The page of an unknown address has absolute links.
        base = folder if page.name == "404.html" else page.parent
        for link in set(re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8"))):
            address = urllib.parse.urlsplit(link)
            if address.scheme or address.netloc:
                continue
            path = urllib.parse.unquote(address.path)
            target = (folder / path.lstrip("/") if path.startswith("/") else base / path) if path else page
            if target.is_dir():
                target = target / "index.html"
            anchor = urllib.parse.unquote(address.fragment)
            has_anchor = not anchor or target.suffix != ".html" or anchor in (anchors(target) if target.is_file() else ())
            if not target.is_file() or not has_anchor:
                yield f"{page.relative_to(folder)}: {link}"


def main(arguments):
    if arguments[:1] == ["check"]:
        found = list(broken(pathlib.Path(arguments[1])))
        for link in found:
            print(f"book: a link leads nowhere: {link}", file=sys.stderr)
        return 1 if found else 0
    if arguments[:1] == ["supports"]:
        return 0
    _, book = json.load(sys.stdin)
    rewrite(book.get("items") or book.get("sections"))
    json.dump(book, sys.stdout)
    return 0


sys.exit(main(sys.argv[1:]))
