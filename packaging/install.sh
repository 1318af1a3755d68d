#!/bin/sh
# Installs likewise from archives that packaging/archive.sh made.
#
#   sh install.sh --from URL [--version VERSION] [--to DIRECTORY]
#
# URL is the directory that holds the archives. The newest version is installed unless one is named. Everything goes below
# DIRECTORY: by default /usr/local for root, and ~/.local for others. Nothing is installed unless its checksum is right.
set -eu

fail() {
  echo "install.sh: $1" >&2
  exit 1
}

from=${LIKEWISE_FROM-}
version=
if [ "$(id -u)" = 0 ]; then to=/usr/local; else to=${HOME-}/.local; fi
while [ $# -gt 0 ]; do
  case $1 in
    --from | --version | --to) [ $# -ge 2 ] || fail "$1 needs a value" ;;
    *) fail "there is no option $1; the options are --from URL, --version VERSION and --to DIRECTORY" ;;
  esac
  case $1 in
    --from) from=$2 ;;
    --version) version=$2 ;;
    --to) to=$2 ;;
  esac
  shift 2
done
[ -n "$from" ] || fail "say where the archives are, with --from URL"
from=${from%/}
case $from in
  https://* | http://localhost[:/]* | http://127.0.0.1[:/]*) ;;
  *) fail "$from is not https: anybody on the way could put another program in place of this one" ;;
esac

if command -v curl >/dev/null; then
  fetch() { curl --fail --silent --show-error --location --proto-redir =https --output "$2" "$1"; }
elif command -v wget >/dev/null; then
  fetch() { wget --quiet --output-document="$2" "$1"; }
else
  fail "curl or wget is needed to fetch the archive"
fi
if command -v sha256sum >/dev/null; then
  check() { sha256sum --check --status "$1"; }
elif command -v shasum >/dev/null; then
  check() { shasum --algorithm 256 --check --status "$1"; }
else
  fail "sha256sum or shasum is needed to check the archive"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if [ -z "$version" ]; then
  fetch "$from/latest" latest || fail "cannot find out the newest version at $from; check the address, or name one with --version"
  version=$(cat latest)
fi
case $version in
  *[!0-9A-Za-z.+-]* | '') fail "\"$version\" is no version" ;;
esac
name=likewise-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
fetch "$from/$name.tar.gz" "$name.tar.gz" ||
  fail "there is no $name.tar.gz at $from; build likewise from its source instead, or name another --version"
fetch "$from/$name.tar.gz.sha256" sum || fail "there is no checksum of $name.tar.gz at $from, so it can't be checked"
# Only the sum counts: the file could name another one to check.
printf '%s  %s\n' "$(cut -d ' ' -f 1 sum)" "$name.tar.gz" >checked
check checked || fail "the checksum of $name.tar.gz is wrong, so nothing was installed: it is damaged, or not what was published"

tar -xzf "$name.tar.gz"
put() {
  mkdir -p "$(dirname "$3")"
  # Under another name first: a program that runs can't be written to.
  cp "$name/$2" "$3.new"
  chmod "$1" "$3.new"
  mv -f "$3.new" "$3"
}
put 755 likewise "$to/bin/likewise"
put 644 documents/likewise.1 "$to/share/man/man1/likewise.1"
put 644 documents/likewise.bash "$to/share/bash-completion/completions/likewise"
put 644 documents/_likewise "$to/share/zsh/site-functions/_likewise"
put 644 documents/likewise.fish "$to/share/fish/vendor_completions.d/likewise.fish"
echo "likewise $version is in $to/bin"
case :$PATH: in
  *:"$to/bin":*) ;;
  *) echo "$to/bin is not on your PATH. Add it: export PATH=\"$to/bin:\$PATH\"" ;;
esac
