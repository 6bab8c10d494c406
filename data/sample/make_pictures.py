#!/usr/bin/env python3
"""Captioned pictures from unpacked Debian packages, into an Orchard data folder.

  clipart SVG_DIR PNG_DIR OUT   openclipart: PNG for the picture, SVG for title and keywords
  stamps  PNG_DIR OUT           tuxpaint stamps: the first line of X.txt captions X.png

Both append to OUT/clipart.jsonl and write OUT/clipart/CATEGORY/NAME.png. Needs Pillow.
"""
import argparse
import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

Image.MAX_IMAGE_PIXELS = None    # shrink() has a limit of its own, without warnings

# openclipart folder -> category; the longest matching folder wins, None drops.
# Fantasy, symbols and weapons go because they are not what the category says;
# stick men and smilies because hundreds of them look alike and have no title.
CATEGORIES: dict[str, str | None] = {
    "animals": "animals", "animals/fantasy": None, "buildings": "buildings",
    "buildings/furniture": None, "food": "food", "geography": "maps", "geography/astronomy": None,
    "people": "people", "people/clothing": "clothing", "people/stickmen": None,
    "people/smilies": None, "people/bodypart": None, "plants": "plants",
    "recreation/music": "music", "signs_and_symbols/flags": "flags",
    "signs_and_symbols/flags/semaphore": None, "special/patterns": "patterns", "tools": "tools",
    "tools/weapons": None, "transportation": "vehicles", "transportation/roadsigns": None,
    "transportation/aiga-symbols": None,
}
# Words that mark the name of a collection, not of a picture; signs and drills filed under
# vehicles; trade marks and portraits of known people; and what is unfit for a sample.
SKIP_WORDS = frozenset("""art card clip clipart cliparts collection example etiquette fashion icon icons
    illustration r sample submission svg unsorted various  boating crossroads curve diagram entry folks heeling
    knot lane quay sign signs tack tacks  blazer bmw chevrolet coltrane copper dodge einstein hummer luther
    runner toyota tux unicef
    cannabis dead gallows gender hide pantyhose pimp silvia skull smoke thongs""".split())
RDF, CC, DC = ("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}", "{http://web.resource.org/cc/}",
               "{http://purl.org/dc/elements/1.1/}")
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Append one JSON object a line to `path` and return how many were written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("a", encoding="utf-8") as out:
        for count, record in enumerate(records, 1):
            out.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return count


def words_of(text: str) -> list[str]:
    """Split file-name noise ("LeafRake_02#b") into its words, without numbers."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"\(.*?\)", " ", text))
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)


def clean_phrase(text: str, english: set[str], creator: set[str]) -> str:
    """`text` without numbers and author names; empty unless descriptive and in `english`, if given."""
    text = re.sub(r"(?i)^clipart by .*? - ", "", text.strip())
    words = [w for w in words_of(text) if w.lower() not in creator]
    lower = {w.lower() for w in words}
    good = (not english or lower <= english) and not lower & SKIP_WORDS and any(len(w) > 2 for w in words)
    return " ".join(words) if good and len(words) <= 8 else ""


def shrink(source: Path, side: int) -> Image.Image | None:
    """The picture on white, cut to its content, `side` pixels on the longer side; None if unfit."""
    picture = Image.open(source)
    if picture.width * picture.height > 1 << 24:
        return None                                    # a few are 100-megapixel posters
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    box = ImageOps.invert(picture.convert("L")).point(lambda v: 255 if v > 12 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    if max(picture.size) > 3 * min(picture.size):
        return None                                    # a thin strip shows nothing when scaled
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    ink = sum(picture.convert("L").histogram()[:230]) / (size[0] * size[1])
    return picture if ink > 0.04 else None


def category_of(folder: str, everything: bool) -> str | None:
    """The category of an openclipart folder; with `everything`, its top folder if not listed."""
    for prefix in sorted(CATEGORIES, key=len, reverse=True):
        if (folder + "/").startswith(prefix + "/"):
            return CATEGORIES[prefix] or (folder.split("/")[0] if everything else None)
    return folder.split("/")[0] if everything else None


def describe(svg: Path, english: set[str]) -> tuple[str, list[str]]:
    """Clean title and keywords from the metadata of a public-domain SVG; no title if unfit."""
    try:
        root = ET.parse(svg).getroot()
    except ET.ParseError:
        return "", []
    # A linked bitmap was never part of the package: the PNG says "Linked image not found".
    if any(not e.get(XLINK + "href", "data:").startswith("data:") for e in root.iter(SVG + "image")):
        return "", []
    work = root.find(f".//{CC}Work")
    if work is None or "public" not in "".join(
            e.get(f"{RDF}resource", "") for e in work.iter(f"{CC}license")).lower():
        return "", []
    credits = " ".join(e.text or "" for tag in ("creator", "rights", "publisher")
                       for part in work.iter(DC + tag) for e in part.iter(f"{DC}title"))
    creator = {w.lower() for w in words_of(credits) if len(w) > 2}
    given = work.findtext(f"{DC}title") or ""
    title = clean_phrase(given, english, creator)
    if not title and "Road Signs" not in given:   # whole series are titled alike; then the file name may tell more
        stem = [w for w in words_of(svg.stem) if not any(c.startswith(w.lower()) for c in creator)]
        title = clean_phrase(" ".join(stem), english, creator)
    found = (clean_phrase(e.text or "", english, creator).lower() for e in work.iter(f"{RDF}li"))
    return title[:1].upper() + title[1:], [k for k in dict.fromkeys(found) if k not in ("", "hash")][:8]


def clipart(args: argparse.Namespace) -> int:
    """Choose, scale and describe openclipart pictures."""
    english = {w.lower() for w in args.words.read_text("utf-8").split()} if args.words else set()
    # A hash orders the pictures: spread over artists, and the same on every machine.
    files = sorted((p for p in args.svg.rglob("*.svg") if not p.is_symlink()),
                   key=lambda p: (hashlib.sha1(p.stem.encode()).digest(), p))

    def records() -> Iterator[dict[str, Any]]:
        taken: Counter[str] = Counter()
        seen: set[bytes] = set()
        for svg in files:
            folder = svg.parent.relative_to(args.svg)
            category = category_of(folder.as_posix(), args.everything)
            source = args.png / folder / f"{svg.stem}.png"
            if category is None or not source.exists() or 0 < args.limit <= taken[category]:
                continue
            title, keywords = describe(svg, english)
            picture = shrink(source, args.side) if title else None
            if picture is None:
                continue
            digest = hashlib.sha1(picture.tobytes()).digest()
            name = f"{category}/{re.sub('[^a-z]+', '-', title.lower())}"
            taken[name] += 1
            # At most two pictures of a title: a third is nearly always one more of a series.
            if digest in seen or (taken[name] > 2 and not args.everything):
                continue
            seen.add(digest)
            taken[category] += 1
            number = f"-{taken[name]}" if taken[name] > 1 else ""
            image = f"clipart/{name}{number}.png"
            (args.out / image).parent.mkdir(parents=True, exist_ok=True)
            picture.save(args.out / image)
            yield {"image": image, "category": category, "title": title, "keywords": keywords}

    rows = sorted(records(), key=lambda r: (r["category"], r["image"]))
    return append_lines(args.out / "clipart.jsonl", rows)


def stamps(args: argparse.Namespace) -> int:
    """Tuxpaint stamps: the first line of X.txt is the English caption of X.png."""
    def records() -> Iterator[dict[str, Any]]:
        for source in sorted(args.png.rglob("*.png")):
            caption = source.with_suffix(".txt")
            lines = caption.read_text("utf-8", errors="replace").splitlines() if caption.exists() else []
            picture = shrink(source, args.side) if lines and lines[0].strip() else None
            if picture is None:
                continue
            folder = source.parent.relative_to(args.png)
            image = f"clipart/stamps-{folder.parts[0]}/{'-'.join((*folder.parts[1:], source.stem))}.png"
            (args.out / image).parent.mkdir(parents=True, exist_ok=True)
            picture.save(args.out / image)
            yield {"image": image, "category": folder.parts[0], "title": lines[0].strip().rstrip("."),
                   "keywords": list(folder.parts)}
    return append_lines(args.out / "clipart.jsonl", islice(records(), args.limit or None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run, folders in ((clipart, ("svg", "png", "out")), (stamps, ("png", "out"))):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        for folder in folders:
            command.add_argument(folder, type=Path)
        command.add_argument("--side", type=int, default=160, help="pixels on the longer side")
        command.add_argument("--limit", type=int, default=0, help="pictures of a category (clipart) or in all (stamps)")
    command = commands.choices["clipart"]
    command.add_argument("--words", type=Path, help="word list that titles must keep to")
    command.add_argument("--everything", action="store_true", help="keep all folders and whole series")
    args = parser.parse_args()
    print(f"{args.command}: {args.run(args)} pictures", file=sys.stderr)


if __name__ == "__main__":
    main()
