#!/usr/bin/env python3
"""Page pictures with word boxes, and prose, from unpacked Debian packages.

  bible TITLE            "Ge1:1 In the ..." verses on stdin -> HTML chapters on stdout
  typeset PDF HTML...    HTML chapters in a chosen typeface -> one PDF, for `pages`
  pages PDF OUT          PDF -> OUT/pages.jsonl and OUT/pages/*.png
  text OUT NAME FILE...  HTML or plain text -> OUT/text/NAME.txt

`pages` and `text` add to the data folder OUT. Needs Pillow and poppler-utils;
`typeset` also WeasyPrint, and `text` html5lib.
"""
import argparse
import html
import math
import re
import subprocess
import sys
import tempfile
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from make_pictures import append_lines

# HTML that is navigation, code or a table: not prose.
NOT_PROSE = frozenset("head script style pre table form svg select sup".split())
NOT_PROSE_CLASSES = frozenset("docnav toc nosearch fancy_toc navheader navfooter footer index".split())
BLOCKS = frozenset("p div li ul ol dl dt dd h1 h2 h3 h4 h5 h6 blockquote section article body pre table form".split())


def bible(args: argparse.Namespace) -> int:
    """Verse lines ("Ge1:1 In the beginning ...") to HTML with a heading for each chapter."""
    body = [f"<html><body><h1>{html.escape(args.title)}</h1>"]
    for verse in filter(None, (re.match(r"\w+?(\d+):(\d+) (.*)", line) for line in sys.stdin)):
        chapter, number, words = verse.groups()
        if number == "1":
            body.append(f"<h2>Chapter {chapter}</h2>")
        # The source marks no paragraphs; five verses make one of a usual length.
        start = "<p>" if int(number) % 5 == 1 else ""
        body.append(f"{start}<sup class='verse'>{number}</sup> {html.escape(words)}")
    print("\n".join(body) + "</body></html>")
    return len(body)


def typeset(args: argparse.Namespace) -> int:
    """Set HTML chapters as one PDF; no hyphens, so that a box always holds a whole word."""
    from weasyprint import CSS, HTML, default_url_fetcher

    def fetch(url: str, *rest: Any) -> dict[str, Any]:
        """Give the manuals' own style sheets, written for screens, no say."""
        return {"string": b"", "mime_type": "text/css"} if url.endswith(".css") else default_url_fetcher(url, *rest)

    style = CSS(string=args.css.read_text("utf-8") + f"""
      @page {{ size: {args.paper}; }}
      body {{ font-family: '{args.font}'; font-size: {args.size}pt; columns: {args.columns}; }}
      h1, h2, h3, h4, th {{ font-family: '{args.heading or args.font}'; }}""")
    parts = [HTML(filename=str(f), url_fetcher=fetch).render(stylesheets=[style]) for f in args.html]
    pages = [page for part in parts for page in part.pages]
    parts[0].copy(pages).write_pdf(str(args.pdf))
    return len(pages)


def normal(text: str | None) -> str:
    """NFKC (which splits ligatures), without soft hyphens or characters that do not print."""
    text = unicodedata.normalize("NFKC", text or "").replace("\u00ad", "")
    return "".join(c for c in text if c.isprintable() and unicodedata.category(c) != "Co").strip()


def layout(pdf: Path) -> list[ET.Element]:
    """The page elements of `pdftotext -bbox-layout`, in reading order."""
    xml = subprocess.run(["pdftotext", "-bbox-layout", str(pdf), "-"], check=True, capture_output=True).stdout
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", xml.decode("utf-8", "replace"))
    return [e for e in ET.fromstring(text).iter() if e.tag.endswith("}page")]


def lines_of(page: ET.Element, image: Image.Image) -> Iterator[dict[str, Any]]:
    """Lines and words of a page in pixels of `image`; what shows no ink there is left out."""
    sx, sy = image.width / float(page.get("width", 1)), image.height / float(page.get("height", 1))
    for line in (e for e in page.iter() if e.tag.endswith("}line")):
        words = []
        for word in (e for e in line if e.tag.endswith("}word")):
            x1, y1, x2, y2 = (float(word.get(k, 0)) for k in ("xMin", "yMin", "xMax", "yMax"))
            box = [max(0, math.floor(x1 * sx)), max(0, math.floor(y1 * sy)),
                   min(image.width, math.ceil(x2 * sx)), min(image.height, math.ceil(y2 * sy))]
            width, height = box[2] - box[0], box[3] - box[1]
            if not (text := normal(word.text)) or width < 2 or height < 4:
                continue
            if len(text) > 3 and height > 1.6 * width:
                continue                                       # set sideways
            dark, light = image.crop((box[0], box[1], box[2], box[3])).getextrema()
            if light - dark > 100:
                words.append({"text": text, "box": box})
        if words:
            columns = list(zip(*(w["box"] for w in words)))
            yield {"text": " ".join(w["text"] for w in words), "words": words,
                   "box": [min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])]}


def pages(args: argparse.Namespace) -> int:
    """Render pages of a PDF in few grey levels, with the words and their boxes."""
    def words_on(page: ET.Element) -> int:     # real words: pages of symbols or numbers do not count
        return sum(e.tag.endswith("}word") and re.search(r"[^\W\d_]{2}", e.text or "") is not None
                   for e in page.iter())

    numbered = [(n, p) for n, p in enumerate(layout(args.pdf), 1)
                if n >= args.first and words_on(p) >= args.min_words]
    step = max(1.0, len(numbered) / args.count) if args.count else 1.0     # spread over the document
    chosen = [numbered[int(i * step)] for i in range(math.floor(len(numbered) / step + 1e-9))]
    grey = [round(round(v * (args.levels - 1) / 255) * 255 / (args.levels - 1)) for v in range(256)]

    def records() -> Iterator[dict[str, Any]]:
        for number, page in chosen:
            with tempfile.TemporaryDirectory() as scratch:
                subprocess.run(["pdftoppm", "-r", str(args.dpi), "-gray", "-singlefile", "-f", str(number),
                                str(args.pdf), f"{scratch}/p"], check=True)
                image = Image.open(f"{scratch}/p.pgm").point(grey)
            name = f"pages/{args.document}-{number:03}.png"
            (args.out / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(args.out / name)
            yield {"image": name, "document": args.document, "page": number, "width": image.width,
                   "height": image.height, "lines": list(lines_of(page, image))}
    return append_lines(args.out / "pages.jsonl", records())


# ---------------------------------------------------------------- text

def paragraphs(path: Path) -> Iterator[str]:
    """Prose paragraphs of an HTML file, or of plain text with blank lines between them."""
    if path.suffix not in (".html", ".htm"):
        yield from re.split(r"\n\s*\n", path.read_text("utf-8", errors="replace"))
        return
    import html5lib
    buffer: list[str] = []

    def walk(node: Any) -> Iterator[str]:
        skip = node.tag in NOT_PROSE or not NOT_PROSE_CLASSES.isdisjoint(node.get("class", "").split())
        block = node.tag in BLOCKS
        if block:
            yield "".join(buffer)
            buffer.clear()
        if not skip:
            buffer.append(node.text or "")
            for child in node:
                if isinstance(child.tag, str):
                    yield from walk(child)
                buffer.append(child.tail or "")
        if block and not skip:
            yield "".join(buffer)
            buffer.clear()
    with path.open("rb") as source:
        yield from walk(html5lib.parse(source, namespaceHTMLElements=False))


def text(args: argparse.Namespace) -> int:
    """One paragraph a line, a blank line between files, until --limit characters."""
    chapters, size, seen = [], 0, set()
    for path in args.files:
        lines = []
        for line in (" ".join(normal(w) for w in p.split()) for p in paragraphs(path)):
            prose = sum(c.isalpha() or c in " ,.;:'" for c in line) > 0.9 * len(line)
            if len(line) >= 60 and prose and line not in seen and size < args.limit:
                seen.add(line)
                lines.append(line)
                size += len(line) + 1
        if lines:
            chapters.append("\n".join(lines) + "\n")
    target = args.out / "text" / f"{args.name}.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(chapters), encoding="utf-8")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("bible", help=bible.__doc__)
    command.set_defaults(run=bible)
    command.add_argument("title")

    command = commands.add_parser("typeset", help=typeset.__doc__)
    command.set_defaults(run=typeset)
    command.add_argument("pdf", type=Path)
    command.add_argument("html", type=Path, nargs="+")
    command.add_argument("--css", type=Path, required=True, help="base style")
    command.add_argument("--font", required=True, help="family of the text")
    command.add_argument("--heading", default="", help="family of headings (as the text)")
    command.add_argument("--size", type=float, default=11, help="points")
    command.add_argument("--paper", default="178mm 238mm", help="width and height")
    command.add_argument("--columns", type=int, default=1)

    command = commands.add_parser("pages", help=pages.__doc__)
    command.set_defaults(run=pages)
    command.add_argument("pdf", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--document", required=True, help="name of the document")
    command.add_argument("--dpi", type=int, default=128)
    command.add_argument("--levels", type=int, default=8, help="grey levels")
    command.add_argument("--count", type=int, default=0, help="pages, spread evenly (0: all)")
    command.add_argument("--first", type=int, default=1, help="first page to consider")
    command.add_argument("--min-words", type=int, default=60, help="leave out pages with fewer words")

    command = commands.add_parser("text", help=text.__doc__)
    command.set_defaults(run=text)
    command.add_argument("out", type=Path)
    command.add_argument("name")
    command.add_argument("files", type=Path, nargs="+")
    command.add_argument("--limit", type=int, default=sys.maxsize, help="characters")

    args = parser.parse_args()
    print(f"{args.command}: {args.run(args)}", file=sys.stderr)


if __name__ == "__main__":
    main()
