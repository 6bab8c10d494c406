#!/usr/bin/env bash
# Packs programs of a build with every shared library they need, for machines on which nothing can be
# installed: GPU servers, containers.
#
# usage: launch/bundle.sh PRESET FILE PROGRAM...
#
# Writes FILE, a .tar.xz of one folder: bin/, lib/, Open MPI's plug-ins, recipes, and the script `run`, so that
# `bundle/run orchard train ...` works there. The other machine needs the same processor family and a C library no
# older than this one's; NVIDIA's driver stays that machine's own. For one process; mpirun is not packed.
set -euo pipefail

(($# >= 3)) || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 78; }
preset=$1 file=$(realpath -m "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/bundle
mkdir -p "$bundle"/{bin,lib,openmpi,share/openmpi,share/orchard}

plugins=$(ompi_info --path pkglibdir --parsable | cut -d: -f3)
help=$(ompi_info --path pkgdatadir --parsable | cut -d: -f3)
cp "$plugins"/mca_*.so "$bundle/openmpi/"
[[ ! -d $help ]] || cp "$help"/help-*.txt "$bundle/share/openmpi/"
for program in "$@"; do
  [[ -x build/$preset/bin/$program ]] || { echo "bundle.sh: build/$preset/bin/$program is missing: launch/build.sh $preset $program" >&2; exit 78; }
  cp "build/$preset/bin/$program" "$bundle/bin/"
done
cp -r launch/recipes data/templates "$bundle/share/orchard/"

# The C library belongs to the kernel and the dynamic linker over there.
ldd "$bundle"/bin/* "$bundle"/openmpi/*.so | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so' |
  while read -r library; do cp -L "$library" "$bundle/lib/"; done
strip "$bundle"/bin/* 2>/dev/null || true

cat >"$bundle/run" <<'RUN'
#!/usr/bin/env bash
# usage: run PROGRAM ARGUMENT...
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export OPAL_PKGLIBDIR=$here/openmpi OPAL_PKGDATADIR=$here/share/openmpi
program=$1
shift
exec "$here/bin/$program" "$@"
RUN
chmod +x "$bundle/run"
# Programs share most of their code: a dictionary as large as all of them finds it again.
tar -C "$work" -cf - bundle | xz -T1 --lzma2=preset=1,dict=512MiB >"$file"
du -h "$file" | cut -f1
