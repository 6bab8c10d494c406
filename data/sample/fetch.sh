#!/usr/bin/env bash
# Rebuild Orchard's sample data from Debian packages.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: fetch.sh WORK

Downloads about 220 MB of Debian packages into WORK/debs, unpacks them into
WORK/root without installing them, and writes the sample to WORK/sample:
clipart.jsonl, pages.jsonl, clipart/, pages/ and text/. Takes a few minutes.

Works on Debian bookworm. Set PYTHON to use another interpreter than python3.
EOF
}

[[ $# == 1 && $1 != -* ]] || { usage >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
. "$here/fetch_lib.sh"

need apt-get:apt dpkg:dpkg pdftoppm:poppler-utils pngquant:pngquant optipng:optipng
need_python PIL:python3-pil weasyprint:weasyprint html5lib:python3-html5lib

mkdir -p "$1"
work=$(cd "$1" && pwd)
out=$work/sample
doc=$work/root/usr/share/doc
rm -rf "$out"

# The fonts come from packages too: pages then look the same everywhere.
fonts=(fonts-texgyre fonts-lato fonts-ebgaramond fonts-linuxlibertine
       fonts-open-sans fonts-roboto-unhinted fonts-liberation2)
unpack "$work" openclipart-png openclipart-svg wamerican debian-handbook \
  bible-kjv bible-kjv-text sqlite3-doc postgresql-doc-15 python-reportlab-doc "${fonts[@]}"
cat >"$work/fonts.conf" <<EOF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>$work/root/usr/share/fonts</dir>
  <dir>$work/root/usr/share/texmf/fonts/opentype</dir>
  <cachedir>$work/fontcache</cachedir>
  <include ignore_missing="yes">/etc/fonts/conf.d</include>
</fontconfig>
EOF
export FONTCONFIG_FILE=$work/fonts.conf

# ---- pictures ----------------------------------------------------------
clipart=$work/root/usr/share/openclipart
"$PYTHON" "$here/make_pictures.py" clipart "$clipart/svg" "$clipart/png" "$out" \
  --words "$work/root/usr/share/dict/american-english" --limit 40

# ---- pages -------------------------------------------------------------
# document NAME COUNT 'TYPESET OPTIONS' CHAPTER... - set, then render COUNT pages.
# Sizes differ because typefaces do: each gives an x-height of 9 to 10 pixels.
document() {
  local name=$1 count=$2 pdf=$work/$1.pdf
  local -a style
  IFS='|' read -ra style <<<"$3"
  shift 3
  "$PYTHON" "$here/make_pages.py" typeset "$pdf" "$@" --css "$here/typeset.css" "${style[@]}"
  "$PYTHON" "$here/make_pages.py" pages "$pdf" "$out" --document "$name" --count "$count" --min-words 120
}

# verses BOOK RANGE FILE - verses of one book as HTML.
verses() {
  "$work/root/usr/bin/bible" -f -p "$work/root/usr/lib" "$2" </dev/null |
    "$PYTHON" "$here/make_pages.py" bible "$1" >"$3"
}

handbook=$doc/debian-handbook/html/en-US
postgres=$doc/postgresql-doc-15/html
sqlite=$doc/sqlite3
verses Genesis genesis1:1-12:20 "$work/genesis.html"
verses Proverbs proverbs1:1-16:33 "$work/proverbs.html"
verses Matthew matthew1:1-12:50 "$work/matthew.html"

# These chapters appear as pages; the text part below uses others, so that
# nothing can be read off the text that should be read off a picture.
intro=("$handbook"/{the-debian-project,sect.foundation-documents,sect.debian-internals,sect.release-lifecycle}.html
       "$handbook"/{sect.master-plan,sect.why-gnu-linux,sect.how-to-migrate,sect.installation-steps}.html)
admin=("$handbook"/{sect.network-config,sect.config-bootloader,sect.rights-management,sect.syslog}.html
       "$handbook"/{sect.backup,sect.firewall-packet-filtering,sect.filesystem-hierarchy}.html)
sqlpages=("$sqlite"/{whentouse,datatype3,lang_createtable,fileformat2,arch,limits,testing,quirks}.html)
tutorial=("$postgres"/{tutorial-createdb,tutorial-table,tutorial-join,tutorial-agg,tutorial-views,tutorial-fk}.html
          "$postgres"/{tutorial-transactions,tutorial-window,tutorial-inheritance,ddl-partitioning}.html)
reference=("$postgres"/{datatype-numeric,datatype-datetime,functions-string,monitoring-stats,errcodes-appendix}.html
           "$postgres"/{sql-createindex,mvcc-intro,glossary}.html)

document handbook-intro 18 '--font|TeX Gyre Pagella|--heading|Lato|--size|11.5' "${intro[@]}"
document handbook-admin 14 '--font|TeX Gyre Heros|--size|10' "${admin[@]}"
document sqlite 16 '--font|Open Sans|--size|10' "${sqlpages[@]}"
document postgres-tutorial 8 '--font|Roboto|--size|10.5' "${tutorial[@]}"
document postgres-reference 10 '--font|Linux Libertine O|--heading|Linux Biolinum O|--size|12' "${reference[@]}"
document kjv-genesis 5 '--font|EB Garamond|--size|13|--columns|2' "$work/genesis.html"
document kjv-proverbs 5 '--font|TeX Gyre Bonum|--size|11' "$work/proverbs.html"
document kjv-matthew 5 '--font|TeX Gyre Termes|--size|12|--columns|2' "$work/matthew.html"
# A PDF as its authors set it; A4 with small type, hence the higher resolution.
# The pages before 60 show mirrored and slanted text, which no box describes.
"$PYTHON" "$here/make_pages.py" pages "$doc/python-reportlab-doc/reportlab-userguide.pdf" "$out" \
  --document reportlab --dpi 144 --count 9 --first 60 --min-words 120

# ---- text --------------------------------------------------------------
prose() { "$PYTHON" "$here/make_pages.py" text "$out" "$@"; }

# but NAME FILE... - the files not among the elements of array NAME, one a line.
but() {
  local -n used=$1
  shift
  printf '%s\n' "$@" | grep -vxFf <(printf '%s\n' "${used[@]}")
}

# shellcheck disable=SC2034  # read by name in but()
shown=("${intro[@]}" "${admin[@]}" "${sqlpages[@]}" "${tutorial[@]}" "${reference[@]}")
mapfile -t files < <(but shown "$handbook"/sect.*.html)
prose handbook "${files[@]}" --limit 350000
mapfile -t files < <(but shown "$sqlite"/{about,atomiccommit,howtocorrupt,lockingv3}.html \
                               "$sqlite"/{queryplanner,wal,whyc,optoverview}.html)
prose sqlite "${files[@]}" --limit 120000
mapfile -t files < <(but shown "$postgres"/{mvcc,indexes,performance,planner,backup,rules,wal}*.html)
prose postgres "${files[@]}" --limit 150000
verses Exodus exodus1:1-20:26 "$work/exodus.html"
verses Mark mark1:1-16:20 "$work/mark.html"
prose kjv "$work"/{exodus,mark}.html --limit 200000

squeeze "$out"
cp "$work/versions.txt" "$out/versions.txt"
du -sh "$out" >&2
