#!/usr/bin/env bash
# Fetch larger sets of real data than the sample, in the same layout.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: fetch_large.sh FOLDER [--only pictures|pages|text] [--limit N]

Downloads about 450 MB of Debian packages into FOLDER/debs, unpacks them into
FOLDER/root without installing them, and writes FOLDER/data in the layout of
the sample (clipart.jsonl, pages.jsonl, clipart/, pages/, text/), so that
whatever reads the sample reads this:

  pictures  openclipart (about 6,000 with titles), tuxpaint stamps (about 800)
  pages     LaTeX manuals, C++ Annotations, Debian reference cards in many
            languages, debmake manual in six: about 9,000 pages
  text      Debian handbook, SQLite and PostgreSQL manuals, C++ Annotations

  --only KIND of the three only this one, with the packages it needs; the others
              are kept as an earlier call left them
  --limit N   at most N pages of each document and N pictures of each category

Everything takes about an hour, nearly all of it for pages; try --limit 1 first
(five minutes), or --only text (one minute). Set PYTHON to use another interpreter than python3.

Much of this is under the GPL, the LPPL or the GFDL: fine to train on at your
place, but read FOLDER/root/usr/share/doc/*/copyright before passing it on.
EOF
}

folder='' limit=0 kinds='pictures pages text'
while (($#)); do
  case $1 in
    --limit) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }; limit=$2; shift ;;
    --only) [[ ${2:-} =~ ^(pictures|pages|text)$ ]] || { usage >&2; exit 2; }; kinds=$2; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) [[ -z $folder ]] || { usage >&2; exit 2; }; folder=$1 ;;
  esac
  shift
done
[[ -n $folder ]] || { usage >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd)
. "$here/fetch_lib.sh"
need apt-get:apt dpkg:dpkg pdftoppm:poppler-utils pngquant:pngquant optipng:optipng
need_python PIL:python3-pil html5lib:python3-html5lib

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root=$folder/root
out=$folder/data
doc=$root/usr/share/doc
mkdir -p "$out"

pictures() {
  unpack "$folder" openclipart-png openclipart-svg tuxpaint-stamps-default
  rm -rf "$out/clipart" "$out/clipart.jsonl"
  # No word list, so that titles in any language stay.
  local clipart=$root/usr/share/openclipart
  "$PYTHON" "$here/make_pictures.py" clipart "$clipart/svg" "$clipart/png" "$out" --everything --limit "$limit"
  "$PYTHON" "$here/make_pictures.py" stamps "$root/usr/share/tuxpaint/stamps" "$out" --limit "$limit"
}

pages() {
  unpack "$folder" texlive-latex-recommended-doc c++-annotations-pdf debian-refcard debmake-doc
  rm -rf "$out/pages" "$out/pages.jsonl"
  mkdir -p "$folder/pdf"
  local pdf name plain
  while IFS= read -r -d '' pdf; do
    # "texlive-doc/latex/caption/caption.pdf.gz" becomes "latex-caption-caption".
    name=${pdf#"$doc"/}
    name=${name#texlive-doc/}
    name=${name%.gz}
    name=$(tr -cs 'A-Za-z0-9\n' - <<<"${name%.pdf}")
    plain=$folder/pdf/$name.pdf
    if [[ $pdf == *.gz ]]; then gzip -dc "$pdf" >"$plain"; else cp "$pdf" "$plain"; fi
    # One odd PDF among hundreds should cost its own pages, not the whole run.
    "$PYTHON" "$here/make_pages.py" pages "$plain" "$out" --document "$name" --dpi 144 --count "$limit" ||
      echo "left out: $pdf" >&2
  done < <(find "$doc/debian-refcard" "$doc/debmake-doc" "$doc"/c++-annotations* "$doc/texlive-doc" \
             -type f \( -name '*.pdf' -o -name '*.pdf.gz' \) -print0 | sort -z)
}

prose() { "$PYTHON" "$here/make_pages.py" text "$out" "$@"; }

text() {
  unpack "$folder" debian-handbook sqlite3-doc postgresql-doc-15 c++-annotations-txt
  rm -rf "$out/text"
  prose handbook "$doc"/debian-handbook/html/en-US/*.html
  prose sqlite "$doc"/sqlite3/*.html
  prose postgres "$doc"/postgresql-doc-15/html/*.html
  find "$doc"/c++-annotations* -name '*.txt.gz' -exec gzip -dc {} + >"$folder/annotations.txt"
  prose annotations "$folder/annotations.txt"
}

for kind in $kinds; do "$kind"; done

squeeze "$out"
versions "$folder"/debs/*.deb >"$out/versions.txt"
du -sh "$out" >&2
